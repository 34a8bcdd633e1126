-- Run by faults_spec.lua: collectives interrupted half-way, groups that work again after a recovery, and
-- messages from before that reach nobody after it.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local check = require('lumoe.status').check

local rank, size = C.lm_dist_rank(), C.lm_dist_world_size()
local LARGE = 600000 -- sent only once the receiver is there; a small message leaves at once

local ranks, out = {}, ffi.new 'lm_group *[1]'
for r = size - 1, 0, -1 do ranks[#ranks + 1] = r end
check(C.lm_group_new(ffi.new('int32_t[?]', size, ranks), size, out))
local backwards = out[0]

local function interrupted(st)
  assert(st == C.LM_ECOMM)
  local message = ffi.string(C.lm_last_error())
  assert(message:find 'interrupted', message)
end

local function sums_are_right(group)
  for _, n in ipairs { 3, LARGE } do
    local x = ffi.new('float[?]', n)
    for i = 0, n - 1 do x[i] = rank + i % 7 end
    check(C.lm_all_reduce(group, x, n, C.LM_F32, C.LM_REDUCE_SUM))
    for i = 0, n - 1 do assert(x[i] == size * (size - 1) / 2 + size * (i % 7)) end
  end
end

local kept = {} -- buffers of messages that were never received
for round = 1, 5 do
  -- Some ranks have begun collectives that the others never come to: old values are on their way.
  local started = {}
  if rank ~= round % size then
    for _, group in ipairs { ffi.cast('lm_group *', nil), backwards } do
      for _, n in ipairs { 3, LARGE } do
        local x, async = ffi.new('float[?]', n), ffi.new 'lm_async *[1]'
        ffi.fill(x, 4 * n, 0x55)
        check(C.lm_all_reduce_start(group, x, n, C.LM_F32, C.LM_REDUCE_SUM, async))
        started[#started + 1], kept[#kept + 1] = async[0], x
      end
    end
    C.lm_dist_interrupt()
    interrupted(C.lm_barrier(backwards))
    for _, async in ipairs(started) do interrupted(C.lm_async_wait(async)) end
    interrupted(C.lm_barrier(nil)) -- broken until the recovery
  elseif round % 2 == 0 then
    C.lm_dist_interrupt() -- this rank waited for nobody
  end
  check(C.lm_dist_recover())
  sums_are_right(nil)
  sums_are_right(backwards)
end
assert(C.lm_memory_live(C.LM_MEM_EXCHANGE) == 0)
if rank == 0 then print 'all well' end
