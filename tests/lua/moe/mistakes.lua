-- Run by layouts_spec.lua: the router of rank 1 slips; every rank must hear of it, and can go on.
local lumoe = require 'lumoe'
local dist, moe = lumoe.dist, lumoe.moe

local slips = {
  ids = function(choice) choice.expert_ids[{ 2, 0 }] = 9 end,
  nan = function(choice) choice.scores[{ 1, 0 }] = 0 / 0 end,
  shape = function(choice) choice.expert_ids = choice.expert_ids[{ { 0, 2 } }] end,
  lua = function() error 'a slip' end,
}
local slip = dist.rank() == 1 and slips[arg[1]] or nil

local layer = moe.Layer { dim = 4, experts = moe.FFN { experts = 3, hidden = 2 }, mesh = dist.mesh { ep = 3 },
  router = moe.Router { route = function(_, x)
    local choice = { scores = lumoe.full({ x:size(0), 3 }, 1 / 3), expert_ids = lumoe.zeros(x:size(0), 1, { dtype = 'i64' }) }
    if slip then slip(choice) end
    return choice
  end } }
layer:named_paths()

local ok, message = pcall(layer, lumoe.randn(5, 4))
assert(not ok)
local others = {}
for r = 0, dist.world_size() - 1 do
  dist.barrier()
  if r == dist.rank() then others[1] = ('rank %d: %s\n'):format(r, message) end
end
io.write(others[1])
io.flush()
slip = nil
assert(layer(lumoe.randn(5, 4)):size(0) == 5) -- the session goes on
