--- What dist.shard makes of a model (runtime/shard.h): its units, what stays of a parameter on a rank, and the
-- buckets in which a unit's gradients travel.
local block = require('lumoe.estimate.unit').block

local sharding = {}

local BUCKET = 8 * 2 ^ 20 -- bytes of gradients that go together (runtime/shard/bucket.c)
sharding.IN_FLIGHT = 4 * BUCKET -- bytes of them that may be on their way at once

local STAGE = { optimizer = 1, gradients = 2, parameters = 3 } -- from which a rank keeps its chunk alone

--- Elements of a parameter that this rank keeps of `what`.
function sharding.share(p, mesh, what)
  return mesh.stage[p.group] >= STAGE[what] and math.ceil(p.here / p.replicas) or p.here
end

--- Whether the optimizer keeps an f32 copy of it.
function sharding.has_master(p, mesh) return p.bytes == 2 and mesh.masters end

--- Bytes of a gradient's element: f32, but for experts' networks that no other rank or backward adds to, if so wanted.
function sharding.gradient_bytes(p, mesh)
  return mesh.bf16_gradients and p.network and p.replicas == 1 and mesh.stage[p.group] == 0 and 2 or 4
end

--- Whether `what` is in the second tier.
function sharding.is_away(mesh, what)
  return mesh.offload == 'parameters' or (mesh.offload == 'optimizer' and what ~= 'parameters')
end

--- A layer is a unit, and its experts are one inside it; what is in no layer belongs to the model's.
-- Returns { experts, dense }, lists of parameters that may be empty.
function sharding.units(u)
  local experts, dense = {}, {}
  for _, p in ipairs(u.parameters) do table.insert(p.group == 'expert' and experts or dense, p) end
  return experts, dense
end

local function is_divided(p, mesh) return mesh.stage[p.group] >= STAGE.gradients end

local function fits(b, p, mesh)
  return b.ranks > 1 and b.group == p.wire and b.divided == is_divided(p, mesh) and b.bytes + 4 * p.here <= BUCKET
end

--- The buckets of a unit's parameters: each takes what fits in with its first; where nothing travels, each has its own.
---@return { group: string, ranks: integer, divided: boolean, parameters: table[], bytes: number, taken: number }[]
function sharding.buckets(parameters, mesh)
  local list = {}
  for _, p in ipairs(parameters) do
    local into
    for _, b in ipairs(list) do into = into or fits(b, p, mesh) and b or nil end
    if not into then
      into = { group = p.wire, ranks = p.replicas, divided = is_divided(p, mesh), parameters = {}, bytes = 0, taken = 0 }
      list[#list + 1] = into
    end
    table.insert(into.parameters, p)
    into.bytes, into.taken = into.bytes + 4 * p.here, into.taken + block(sharding.gradient_bytes(p, mesh) * p.here)
  end
  return list
end

return sharding
