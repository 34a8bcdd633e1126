--- Seconds of one f(), the fastest of many on this rank, and of that the most of all ranks, which call it together.
local dist = require 'lumoe.dist'
local clock = require('lumoe.log.terminal').clock

local ENOUGH = 0.15 -- seconds of one measurement

return function(f)
  f()
  local spent, best, times = 0, math.huge, 0
  repeat -- equally often on all ranks
    local begun = clock()
    f()
    local took = clock() - begun
    spent, best, times = spent + took, math.min(best, took), times + 1
    local go_on = dist.reduce_number(spent < ENOUGH and times < 1000 and 1 or 0, 'max') > 0
  until not go_on
  return dist.reduce_number(best, 'max')
end
