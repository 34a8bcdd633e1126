--- Ranks, the mesh they form, and what training needs of them.
--
-- Every rank runs the same script. A process that no launcher started is a world of one, and
-- everything here is then free. The transport starts at the first call (runtime/dist.h).
local dist = {
  mesh = require 'lumoe.dist.mesh',
  placement = require 'lumoe.dist.placement',
}

local PARTS = { require 'lumoe.dist.group', require 'lumoe.dist.counters', require 'lumoe.dist.parallel',
  require 'lumoe.dist.gradients' }
for _, part in ipairs(PARTS) do
  for name, f in pairs(part) do dist[name] = f end
end

local shard = require 'lumoe.dist.shard'
dist.shard, dist.unshard, dist.gathered = shard.shard, shard.unshard, shard.gathered

-- What training does not need loads when first named.
local lazy = { check_layouts = 'lumoe.dist.check_layouts', layouts = 'lumoe.dist.layouts' }

return setmetatable(dist, {
  __index = function(self, name)
    if not lazy[name] then return nil end
    local value = require(lazy[name])
    rawset(self, name, value)
    return value
  end,
})
