--- The whole tensor of which a parameter holds a part here, put together from all ranks that hold some of
-- it: `t` lies as the parameter does (its gradient, say). Collective over its mesh.
local lumoe = require 'lumoe'
local dist = lumoe.dist

-- Calls f(part of whole, part of t) for each box of ranges, from dim d on.
local function boxes(whole, t, ranges, d, f)
  if d > #ranges then return f(whole, t) end
  local at = 0
  for _, range in ipairs(ranges[d]) do
    boxes(whole:narrow(d - 1, range[1], range[2]), t:narrow(d - 1, at, range[2]), ranges, d + 1, f)
    at = at + range[2]
  end
end

return function(t, p)
  local whole = lumoe.zeros(p.spec.whole)
  if dist.placement.counts(p) then
    boxes(whole, t:detach(), dist.placement.ranges(p), 1, function(to, from) to:copy_(from) end)
  end
  return dist.all_reduce(whole, 'sum', dist.placement.mesh(p).tokens)
end
