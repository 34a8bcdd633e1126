--- A step's milliseconds as what a line is about.
local measures = {}

--- So many of something (tokens, GFLOP) a step, a second.
function measures.per_second(count) return function(ms) return count / ms * 1e3 end end
--- Milliseconds of one of `count` in a step.
function measures.ms(count) return function(ms) return ms / (count or 1) end end
--- Nanoseconds of one of `count` in a step.
function measures.ns(count) return function(ms) return ms / count * 1e6 end end

return measures
