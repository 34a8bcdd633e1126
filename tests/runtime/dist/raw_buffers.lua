-- Run by faults_spec.lua: memory of Lua's that the messages of a failed collective may still touch outlives its last
-- user, and no longer than that.
local ffi = require 'ffi'
local lumoe = require 'lumoe'
local C = require 'lumoe.ffi'
local checked = require 'lumoe.dist.checked'

local rank, size = lumoe.dist.rank(), lumoe.dist.world_size()
local LARGE = 100000 -- numbers: sent only once the receiver is there, and given back to the system when collected

local seen = setmetatable({}, { __mode = 'v' })

-- A sum over memory that nobody but `seen` knows afterwards.
local function interrupted_sum()
  local numbers = ffi.new('double[?]', LARGE)
  seen.numbers = numbers
  C.lm_dist_interrupt()
  checked(C.lm_all_reduce(nil, numbers, LARGE, C.LM_F64, C.LM_REDUCE_SUM), numbers)
end

local function collect()
  collectgarbage()
  collectgarbage()
end

-- Rank 0 alone begins; what it sends is read by the others only after it has failed and collected its garbage.
for round = 1, 3 do
  if rank == 0 then
    local ok, message = pcall(interrupted_sum)
    assert(not ok and message:find 'interrupted', message)
    collect()
    assert(seen.numbers and C.lm_memory_pins() > 0, 'they are gone')
  end
  lumoe.dist.recover()
  assert(C.lm_memory_pins() == 0)
  assert(lumoe.dist.reduce_number(round) == size * round)
  collect()
  assert(not seen.numbers, 'they stay for ever')
end

if rank == 0 then print 'all well' end
