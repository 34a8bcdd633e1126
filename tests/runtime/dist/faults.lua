-- Run by faults_spec.lua: what the last rank does wrong, by name, while the others go on.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local check = require('lumoe.status').check

local size = C.lm_dist_world_size()
local last = C.lm_dist_rank() == size - 1
local numbers = ffi.new 'int64_t[1000]'
local MIB = 2 ^ 20

local function sum(count) check(C.lm_all_reduce(nil, numbers, count, C.LM_I64, C.LM_REDUCE_SUM)) end
local function broadcast(root) check(C.lm_broadcast(nil, numbers, 400, root)) end

--- Every rank sends every other `bytes`, and expects as many; but the last one sends rank 0 `wrong`.
local function exchange(bytes, wrong)
  local sends, receives = ffi.new('int64_t[?]', size), ffi.new('int64_t[?]', size)
  for r = 0, size - 1 do sends[r], receives[r] = bytes, bytes end
  if last then sends[0] = wrong end
  check(C.lm_all_to_all_v(nil, ffi.new('char[?]', size * math.max(bytes, wrong)), sends, ffi.new('char[?]', size * bytes),
    receives))
end

local function start(count)
  local out = ffi.new 'lm_async *[1]'
  check(C.lm_all_reduce_start(nil, numbers, count, C.LM_I64, C.LM_REDUCE_SUM, out))
  return out[0]
end

--- A large exchange, of which a part may have gone, but not all: a call moves few of its pieces.
local function begin()
  local bytes, out = 32 * MIB, ffi.new 'lm_async *[1]'
  local from, to, each = ffi.new('char[?]', size * bytes), ffi.new('char[?]', size * bytes), ffi.new('int64_t[?]', size)
  for r = 0, size - 1 do each[r] = bytes end
  check(C.lm_all_to_all_v_start(nil, from, each, to, each, out))
  for _ = 1, 20 do C.lm_dist_progress() end
  return out[0], from, to
end

local function exchange_all()
  local async, from, to = begin()
  check(C.lm_async_wait(async))
  return from, to
end

-- { what the last rank does, what the others do }
local faults = {
  error = { function() error 'no such thing' end },
  error_between = { function() -- with collectives under way
    start(1000)
    error 'no such thing'
  end, function() check(C.lm_async_wait(start(1000))) end },
  error_amid = { function()
    begin()
    error 'no such thing'
  end, exchange_all },
  exit = { function() os.exit(3) end },
  leaves = { function() os.exit(0) end }, -- with success, while the others wait
  leaves_amid = { function()
    begin()
    os.exit(0)
  end, exchange_all },
  dies = { function() ffi.cast('int *', 8)[0] = 1 end },
  killed = { function() os.execute 'kill -9 $PPID' end },
  killed_amid = { function()
    begin()
    os.execute 'kill -9 $PPID'
  end, exchange_all },
  sends_more = { function() exchange(64, MIB) end, function() exchange(64, 64) end },
  sends_less = { function() exchange(MIB, 8) end, function() exchange(MIB, MIB) end },
  sends_other = { function() exchange(MIB, MIB / 2) end, function() exchange(MIB, MIB) end },
  other_call = { function() check(C.lm_broadcast(nil, ffi.new 'char[4000]', 4000, 1)) end },
  other_count = { function() sum(7) end, function() sum(8) end },
  other_root = { function() broadcast(1) end, function() broadcast(0) end },
  other_sizes = { function() exchange(16, 24) end, function() exchange(16, 16) end },
  other_started = {
    function() check(C.lm_async_wait(start(3))) end,
    function()
      local async = start(4)
      check(C.lm_async_wait(async))
    end,
  },
  other_group = { function() check(C.lm_group_new(ffi.new('int32_t[3]', 0, 2, 1), 3, ffi.new 'lm_group *[1]')) end,
    function() check(C.lm_group_new(ffi.new('int32_t[3]', 0, 1, 2), 3, ffi.new 'lm_group *[1]')) end },
  sleeps = { function() os.execute 'sleep 100' end },
  loops = { function() while true do numbers[1] = numbers[1] + 1 end end },
  forgets = { function() -- the last collective, and is in another one
    check(C.lm_barrier(nil))
    check(C.lm_barrier(nil))
  end, function()
    check(C.lm_barrier(nil))
  end },
}

check(C.lm_barrier(nil))
if arg[1] == 'none' then -- until somebody ends it from outside
  if last then print 'running' end
  while true do
    local async = start(1000)
    sum(10)
    exchange(4000, 4000)
    check(C.lm_async_wait(async))
  end
end
local fault = faults[arg[1]]
local act = last and fault[1] or fault[2]
if act then act() end
sum(1)
