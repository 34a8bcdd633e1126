-- Run by dist_spec.lua under mpirun: every collective against what it should give.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local check = require('lumoe.status').check

local rank, size = C.lm_dist_rank(), C.lm_dist_world_size()
assert(size == tonumber(arg[1]), 'world_size')

local function sum_of(f)
  local s = 0
  for r = 0, size - 1 do s = s + f(r) end
  return s
end

local function reduce_all(group, members)
  for _, n in ipairs { 0, 1, 7, 5000, 1200001 } do -- small path, large path, several segments
    local x = ffi.new('float[?]', n)
    for i = 0, n - 1 do x[i] = (rank + 1) * (i % 97) end
    check(C.lm_all_reduce(group, x, n, C.LM_F32, C.LM_REDUCE_SUM))
    local weight = 0
    for _, r in ipairs(members) do weight = weight + r + 1 end
    for i = 0, n - 1 do assert(x[i] == weight * (i % 97), 'sum f32') end
  end
end

local everyone = {}
for r = 0, size - 1 do everyone[#everyone + 1] = r end
reduce_all(nil, everyone)

for _, kind in ipairs { { 'double', C.LM_F64 }, { 'int32_t', C.LM_I32 }, { 'int64_t', C.LM_I64 } } do
  local ctype, dtype = kind[1], kind[2]
  local x = ffi.new(ctype .. '[3]', rank, -rank, 5)
  check(C.lm_all_reduce(nil, x, 3, dtype, C.LM_REDUCE_SUM))
  local s = sum_of(function(r) return r end)
  assert(x[0] == s and x[1] == -s and x[2] == 5 * size, ctype)
  x[0], x[1] = rank, -rank
  check(C.lm_all_reduce(nil, x, 3, dtype, C.LM_REDUCE_MAX))
  assert(x[0] == size - 1 and x[1] == 0, ctype .. ' max')
  x[0], x[1] = rank, -rank
  check(C.lm_all_reduce(nil, x, 3, dtype, C.LM_REDUCE_MIN))
  assert(x[0] == 0 and x[1] == -(size - 1), ctype .. ' min')
end

do -- bf16 is summed in f32: 256 + 1 + 1 + 1 would stay 256 if rounded after each rank
  local x = ffi.new('uint16_t[1]', rank == 0 and 0x4380 or 0x3f80)
  check(C.lm_all_reduce(nil, x, 1, C.LM_BF16, C.LM_REDUCE_SUM))
  local want = ({ 0x4380, 0x4380, 0x4381, 0x4382 })[size] -- 257 and 259 tie to even
  assert(x[0] == want, ('bf16 %x'):format(x[0]))
end

for root = 0, size - 1 do
  local x = ffi.new('int32_t[4]', rank, rank, rank, rank)
  check(C.lm_broadcast(nil, x, 16, root))
  assert(x[0] == root and x[3] == root, 'broadcast')
end

do
  local all = ffi.new('int32_t[?]', 2 * size)
  check(C.lm_all_gather(nil, ffi.new('int32_t[2]', rank, 10 * rank), 8, all))
  for r = 0, size - 1 do assert(all[2 * r] == r and all[2 * r + 1] == 10 * r, 'all_gather') end
end

do -- rank r gives r bytes; rank 0 none
  local bytes, total = ffi.new('int64_t[?]', size), 0
  for r = 0, size - 1 do bytes[r], total = r, total + r end
  local mine, all = ffi.new('uint8_t[?]', rank + 1), ffi.new('uint8_t[?]', total + 1)
  ffi.fill(mine, rank, rank)
  check(C.lm_all_gather_v(nil, mine, bytes, all))
  local at = 0
  for r = 0, size - 1 do
    for _ = 1, r do assert(all[at] == r, 'all_gather_v') at = at + 1 end
  end
end

do
  local data, out = ffi.new('float[?]', size * 3), ffi.new 'float[3]'
  for i = 0, size * 3 - 1 do data[i] = i + rank end
  check(C.lm_reduce_scatter(nil, data, 3, C.LM_F32, C.LM_REDUCE_SUM, out))
  for i = 0, 2 do
    assert(out[i] == sum_of(function(r) return 3 * rank + i + r end), 'reduce_scatter')
  end
end

for _, unit in ipairs { 1, 4096 * 37 } do -- rank a sends (a + b) % 3 units to rank b
  local sends, receives = ffi.new('int64_t[?]', size), ffi.new('int64_t[?]', size)
  local out, into = 0, 0
  for r = 0, size - 1 do
    sends[r] = (rank + r) % 3 * unit
    receives[r] = sends[r]
    out, into = out + tonumber(sends[r]), into + tonumber(receives[r])
  end
  local from, to = ffi.new('uint8_t[?]', out + 1), ffi.new('uint8_t[?]', into + 1)
  local at = 0
  for r = 0, size - 1 do
    ffi.fill(from + at, sends[r], 16 * rank + r)
    at = at + tonumber(sends[r])
  end
  check(C.lm_all_to_all_v(nil, from, sends, to, receives))
  at = 0
  for r = 0, size - 1 do
    for _ = 1, tonumber(receives[r]) do
      assert(to[at] == 16 * r + rank, 'all_to_all_v')
      at = at + 1
    end
  end
end

check(C.lm_barrier(nil))

-- Groups: pairs, overlapping ones, in another order.
local out = ffi.new 'lm_group *[1]'
if size == 4 then
  local half = rank < 2 and { 1, 0 } or { 2, 3 }
  check(C.lm_group_new(ffi.new('int32_t[2]', half), 2, out))
  local pair = out[0]
  reduce_all(pair, half)
  assert(C.lm_group_world_rank(pair, 0) == half[1])
  assert(half[C.lm_group_rank(pair) + 1] == rank)
  if rank > 0 then
    check(C.lm_group_new(ffi.new('int32_t[3]', 1, 2, 3), 3, out))
    reduce_all(out[0], { 1, 2, 3 })
    reduce_all(pair, half)
    C.lm_group_release(out[0])
  else
    reduce_all(pair, half)
  end
  C.lm_group_release(pair)
end
assert(C.lm_group_new(ffi.new('int32_t[1]', size), 1, out) == C.LM_EARG)
assert(ffi.string(C.lm_last_error()):find 'group: rank %d of a world of %d')

-- An error on the last rank is an error on all.
local failing = size - 1
local st = C.lm_dist_agree_text(nil, rank == failing and C.LM_EARG or 0, 'router "top": bad id')
assert(st == C.LM_EARG)
assert(ffi.string(C.lm_last_error()):find('router "top": bad id', 1, true))
assert(C.lm_dist_agree(nil, 0) == 0)

if rank == 0 then print 'all well' end
