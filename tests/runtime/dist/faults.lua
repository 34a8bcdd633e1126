-- Run by dist_spec.lua under mpirun: what one rank does wrong, by name.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local check = require('lumoe.status').check

local last = C.lm_dist_rank() == C.lm_dist_world_size() - 1
local faults = {
  error = function() error 'no such thing' end,
  exit = function() os.exit(3) end,
  leaves = function() os.exit(0) end, -- with success, while the others wait
  dies = function() ffi.cast('int *', 8)[0] = 1 end,
  killed = function() os.execute 'kill -9 $PPID' end,
  other_call = function() check(C.lm_broadcast(nil, ffi.new 'char[4000]', 4000, 1)) end,
}
check(C.lm_barrier(nil))
if last then faults[arg[1]]() end
local x = ffi.new 'int64_t[1]'
check(C.lm_all_reduce(nil, x, 1, C.LM_I64, C.LM_REDUCE_SUM))
