-- Run by faults_spec.lua: Ctrl-C, as mpirun passes it on, wherever the ranks are; then they go on together.
local ffi = require 'ffi'
local host = require 'lumoe.host'
local C = require 'lumoe.ffi'
local check = require('lumoe.status').check

local rank, size = C.lm_dist_rank(), C.lm_dist_world_size()
local x = ffi.new('float[?]', 50000)

local function work() -- without an end
  local async = ffi.new 'lm_async *[1]'
  for n = 1, math.huge do
    check(C.lm_all_reduce_start(nil, x, 50000, C.LM_F32, C.LM_REDUCE_MAX, async))
    if rank == n % size then -- the others wait for this one
      for _ = 1, 3e6 do x[0] = 1 end
    end
    check(C.lm_async_wait(async[0]))
  end
end

check(C.lm_barrier(nil))
for round = 1, 3 do
  host.interrupts(1, 1000)
  if rank == 0 then print('running', round) end
  local ok, message = pcall(work)
  assert(not ok and tostring(message):find 'interrupted', message)
  host.interrupts(1000, 1001) -- a late one must not end the recovery
  check(C.lm_dist_recover())
  local sum = ffi.new('int64_t[1]', rank)
  check(C.lm_all_reduce(nil, sum, 1, C.LM_I64, C.LM_REDUCE_SUM))
  assert(sum[0] == size * (size - 1) / 2)
end
assert(C.lm_memory_live(C.LM_MEM_EXCHANGE) == 0) -- of those that nobody waited for, too
if rank == 0 then print 'all well' end
