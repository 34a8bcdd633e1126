-- Run by dist_spec.lua: many collectives in flight, on several groups, beside others that block,
-- waited for in an order that is different on every rank; the results are those of the blocking calls.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local check = require('lumoe.status').check

local rank, size = C.lm_dist_rank(), C.lm_dist_world_size()
assert(size == tonumber(arg[1]), 'world_size')

-- ---- two sources of chance: one that all ranks share, one of this rank's own

local function dice(seed)
  local state = seed
  return function(n) -- 0 .. n - 1
    state = (state * 16807) % 2147483647
    return state % n
  end
end
local shared, own = dice(7), dice(1000 + 77 * rank)

-- ---- groups: the world, its last ranks, its first ones from the last to the first

local function group(ranks)
  local out = ffi.new 'lm_group *[1]'
  for _, r in ipairs(ranks) do
    if r == rank then
      check(C.lm_group_new(ffi.new('int32_t[?]', #ranks, ranks), #ranks, out))
      return { pointer = out[0], size = #ranks, rank = C.lm_group_rank(out[0]) }
    end
  end
end

local ranks, tail, head = {}, {}, {}
for r = 0, size - 1 do
  ranks[#ranks + 1] = r
  if r >= math.floor(size / 3) then tail[#tail + 1] = r end
  if r <= size / 2 then table.insert(head, 1, r) end
end
local groups = { { pointer = nil, size = size, rank = rank }, group(tail) or false, group(head) or false }

-- ---- the collectives: each fills buffers by chance and gives what starts it, what blocks, and the result

local function floats(n)
  local x = ffi.new('float[?]', n + 1)
  for i = 0, n - 1 do x[i] = own(1000003) / 7 end
  return x
end

local function copy(x, bytes)
  local y = ffi.new('uint8_t[?]', bytes + 1)
  ffi.copy(y, x, bytes)
  return y
end

-- Sizes that all members of g know: [from][to].
local function table_of_sizes(g, unit)
  local sizes = {}
  for a = 0, g.size - 1 do
    sizes[a] = {}
    for b = 0, g.size - 1 do sizes[a][b] = shared(4) * unit end
  end
  return sizes
end

local kinds = {
  function(g, n) -- all_reduce
    local dtype = ({ [0] = C.LM_F32, C.LM_BF16, C.LM_I32 })[shared(3)]
    local op, bytes = shared(3), n * C.lm_dtype_size(dtype)
    local a = floats(n)
    if dtype == C.LM_I32 then -- whose sum fits
      local whole = ffi.cast('int32_t *', a)
      for i = 0, n - 1 do whole[i] = own(1000003) end
    end
    local b = copy(a, bytes)
    return function(out) return C.lm_all_reduce_start(g.pointer, a, n, dtype, op, out) end,
      function() return C.lm_all_reduce(g.pointer, b, n, dtype, op) end, a, b, bytes
  end,
  function(g, n) -- reduce_scatter
    local x = floats(n * g.size)
    local y = copy(x, 4 * n * g.size)
    local a, b = floats(n), floats(n)
    return function(out) return C.lm_reduce_scatter_start(g.pointer, x, n, C.LM_F32, 0, a, out) end,
      function() return C.lm_reduce_scatter(g.pointer, y, n, C.LM_F32, 0, b) end, a, b, 4 * n, x, y
  end,
  function(g, n) -- all_gather
    local x, a, b = floats(n), floats(n * g.size), floats(n * g.size)
    return function(out) return C.lm_all_gather_start(g.pointer, x, 4 * n, a, out) end,
      function() return C.lm_all_gather(g.pointer, x, 4 * n, b) end, a, b, 4 * n * g.size, x
  end,
  function(g, n) -- all_gather_v
    local bytes, total = ffi.new('int64_t[?]', g.size), 0
    for r = 0, g.size - 1 do
      bytes[r] = 4 * shared(n + 1)
      total = total + tonumber(bytes[r])
    end
    local x, a, b = floats(n), floats(total), floats(total)
    return function(out) return C.lm_all_gather_v_start(g.pointer, x, bytes, a, out) end,
      function() return C.lm_all_gather_v(g.pointer, x, bytes, b) end, a, b, total, x, bytes
  end,
  function(g, n) -- all_to_all_v
    local sizes = table_of_sizes(g, n)
    local sends, receives = ffi.new('int64_t[?]', g.size), ffi.new('int64_t[?]', g.size)
    local total = 0
    for r = 0, g.size - 1 do
      sends[r], receives[r] = sizes[g.rank][r], sizes[r][g.rank]
      total = total + tonumber(receives[r])
    end
    local x, a, b = floats(n * g.size), floats(n * g.size), floats(n * g.size)
    return function(out) return C.lm_all_to_all_v_start(g.pointer, x, sends, a, receives, out) end,
      function() return C.lm_all_to_all_v(g.pointer, x, sends, b, receives) end, a, b, total, x, sends, receives
  end,
}

-- ---- many of them

local in_flight = {}

local function finish(i)
  local op = table.remove(in_flight, i)
  if own(2) == 0 then
    while C.lm_async_test(op.async) == 0 do C.lm_dist_progress() end
  end
  check(C.lm_async_wait(op.async))
  op.finished = true
end

local all = {}
for n = 1, 300 do
  local g = groups[shared(3) + 1]
  local length = ({ [0] = 0, 1, 300, 5000, 40000 })[shared(5)]
  local kind = kinds[shared(#kinds) + 1]
  local seed = shared(2147483646) + 1
  local keep = shared
  shared = dice(seed) -- what follows is for members alone
  if g then
    local out = ffi.new 'lm_async *[1]'
    local op = { n = n, buffers = { kind(g, length) } }
    check(op.buffers[1](out))
    op.async = out[0]
    all[#all + 1], in_flight[#in_flight + 1] = op, op
    if shared(4) == 0 then check(op.buffers[2]()) op.compared = true end -- blocks beside all that is in flight
  end
  shared = keep
  for _ = 1, own(3) do -- on average as many as are started, some late
    if #in_flight > 0 and own(2) == 0 then finish(own(#in_flight) + 1) end
  end
  if shared(20) == 0 then check(C.lm_barrier(nil)) end
end
while #in_flight > 0 do finish(own(#in_flight) + 1) end

for _, op in ipairs(all) do
  local _, blocking, a, b, bytes = unpack(op.buffers)
  if not op.compared then check(blocking()) end
  assert(ffi.string(a, bytes) == ffi.string(b, bytes), ('collective %d'):format(op.n))
end

do -- more than a group has tags for
  local n, asyncs, xs = 200, {}, {}
  for i = 1, n do
    local out = ffi.new 'lm_async *[1]'
    xs[i] = ffi.new('int64_t[3]', i, rank, 1)
    check(C.lm_all_reduce_start(nil, xs[i], 3, C.LM_I64, C.LM_REDUCE_SUM, out))
    asyncs[i] = out[0]
  end
  for i = n, 1, -1 do
    check(C.lm_async_wait(asyncs[i]))
    assert(xs[i][0] == i * size and xs[i][1] == size * (size - 1) / 2 and xs[i][2] == size)
  end
end

if size == 1 then -- done at once
  local out, x = ffi.new 'lm_async *[1]', ffi.new('float[1]', 4)
  check(C.lm_all_reduce_start(nil, x, 1, C.LM_F32, 0, out))
  assert(C.lm_async_test(out[0]) == 1 and C.lm_async_wait(out[0]) == 0 and x[0] == 4)
else -- one that is given up breaks its group, and no other
  local broken, out = group(ranks), ffi.new 'lm_async *[1]'
  local x = ffi.new('float[?]', 100000)
  if rank == 0 then
    check(C.lm_all_reduce_start(broken.pointer, x, 100000, C.LM_F32, 0, out))
    C.lm_async_drop(out[0])
    assert(C.lm_barrier(broken.pointer) == C.LM_ECOMM)
    assert(ffi.string(C.lm_last_error()):find 'barrier: an earlier collective of this group failed')
  end
  check(C.lm_barrier(nil))
end
assert(C.lm_memory_live(C.LM_MEM_EXCHANGE) == 0)
if rank == 0 then print 'all well' end
