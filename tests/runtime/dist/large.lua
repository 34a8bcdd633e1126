-- Run by dist_spec.lua: messages of all lengths around those at which they go another way, more of them at once than
-- there are ways, some that nobody takes; every byte arrives, and no other is touched.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local check = require('lumoe.status').check

local rank, size = C.lm_dist_rank(), C.lm_dist_world_size()
local KIB = 1024
local LENGTHS = { 1, 17, 8 * KIB - 1, 8 * KIB, 8 * KIB + 1, 64 * KIB, 512 * KIB - 1, 512 * KIB, 512 * KIB + 1, 576 * KIB,
  1024 * KIB, 1100 * KIB - 3, 3000001, 6300001 }
local GUARD = 64
local kept = {} -- buffers, until their messages have gone

local function length(call, from, to) return LENGTHS[(call + 2 * from + 5 * to) % #LENGTHS + 1] end

-- A pattern of its own for each message, with a period that no piece has.
local function fill(at, bytes, call, from, to)
  local words = ffi.new('uint8_t[251]')
  for i = 0, 250 do words[i] = (7 * i + 31 * call + 67 * from + 101 * to) % 256 end
  for first = 0, bytes - 1, 251 do ffi.copy(at + first, words, math.min(251, bytes - first)) end
end

--- Starts an exchange of its own lengths; gives what waits for it and looks at what has come.
local function start(call)
  local sends, receives, out, into = ffi.new('int64_t[?]', size), ffi.new('int64_t[?]', size), 0, 0
  for r = 0, size - 1 do
    sends[r], receives[r] = length(call, rank, r), length(call, r, rank)
    out, into = out + tonumber(sends[r]), into + tonumber(receives[r])
  end
  local from, to, want = ffi.new('uint8_t[?]', out), ffi.new('uint8_t[?]', into + GUARD), ffi.new('uint8_t[?]', into + GUARD)
  local at, place = 0, 0
  for r = 0, size - 1 do
    fill(from + at, tonumber(sends[r]), call, rank, r)
    fill(want + place, tonumber(receives[r]), call, r, rank)
    at, place = at + tonumber(sends[r]), place + tonumber(receives[r])
  end
  local async = ffi.new 'lm_async *[1]'
  kept[#kept + 1] = from
  check(C.lm_all_to_all_v_start(nil, from, sends, to, receives, async))
  return function()
    check(C.lm_async_wait(async[0]))
    assert(ffi.string(to, into + GUARD) == ffi.string(want, into + GUARD), ('exchange %d'):format(call))
  end
end

local function some(calls, backwards)
  local waits = {}
  for call = 1, calls do waits[call] = start(call) end
  for i = 1, calls do waits[backwards and calls + 1 - i or i]() end
  kept = {}
end

for call = 1, #LENGTHS do start(call)() end
some(12)
some(7, rank % 2 == 0) -- each waits for another one

-- gathered from all, a length after the other; this rank's own part too
for call = 1, #LENGTHS do
  local bytes, total = ffi.new('int64_t[?]', size), 0
  for r = 0, size - 1 do
    bytes[r] = length(call, r, 0)
    total = total + tonumber(bytes[r])
  end
  local own, all, want = ffi.new('uint8_t[?]', bytes[rank] + 1), ffi.new('uint8_t[?]', total + GUARD), ffi.new('uint8_t[?]', total + GUARD)
  fill(own + 1, tonumber(bytes[rank]), call, rank, 0)
  local at = 0
  for r = 0, size - 1 do
    fill(want + at, tonumber(bytes[r]), call, r, 0)
    at = at + tonumber(bytes[r])
  end
  check(C.lm_all_gather_v(nil, own + 1, bytes, all))
  assert(ffi.string(all, total + GUARD) == ffi.string(want, total + GUARD), ('gather %d'):format(call))
end

-- what is dropped half-way keeps what it has taken until all have recovered; the world goes on without
for _ = 1, 3 do
  local group, async = ffi.new 'lm_group *[1]', ffi.new 'lm_async *[1]'
  local ranks, x = ffi.new('int32_t[?]', size), ffi.new('float[?]', 1000000)
  for r = 0, size - 1 do ranks[r] = r end
  check(C.lm_group_new(ranks, size, group))
  if rank ~= 0 then check(C.lm_all_reduce_start(group[0], x, 1000000, C.LM_F32, C.LM_REDUCE_SUM, async)) end
  check(C.lm_barrier(nil))
  if rank == 0 then check(C.lm_all_reduce_start(group[0], x, 1000000, C.LM_F32, C.LM_REDUCE_SUM, async)) end
  for _ = 1, rank do C.lm_dist_progress() end
  kept[#kept + 1] = x
  C.lm_async_drop(async[0])
end
some(5)
check(C.lm_barrier(nil))
C.lm_dist_recover()
some(5)
if rank == 0 then print 'all well' end
