--- The part of a whole tensor that a parameter holds here, by its placement alone.
local lumoe = require 'lumoe'

return function(whole, p)
  local part = whole
  for d, ranges in ipairs(lumoe.dist.placement.ranges(p)) do
    local pieces = {}
    for i, range in ipairs(ranges) do pieces[i] = part:narrow(d - 1, range[1], range[2]) end
    part = #pieces > 0 and lumoe.cat(pieces, d - 1) or part:narrow(d - 1, 0, 0)
  end
  return part
end
