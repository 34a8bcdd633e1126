--- Bytes and messages that a rank sends on each wire in one step, and what goes to and from the second tier.
local footprint = require 'lumoe.estimate.footprint'
local sharding = require 'lumoe.estimate.sharding'
local wires = require 'lumoe.estimate.wires'

local traffic = {}

-- Of a group's members, the share of the others that is on other hosts; ranks lie on hosts in their order.
local function others_far(group, on_host)
  local near = math.max(1, math.min(group.size, math.floor(on_host / group.stride)))
  return group.size > 1 and (group.size - near) / (group.size - 1) or 0
end

-- far: what of it goes between hosts, by default as much to each member.
local function add(list, index, context, wire, group, bytes, messages, far)
  if bytes == 0 then return end
  local key, share = wire .. '/' .. group, others_far(context.mesh.groups[group], context.on_host)
  if not index[key] then
    index[key] = { wire = wire, group = group, bytes = 0, messages = 0, far = { bytes = 0, messages = 0 } }
    list[#list + 1] = index[key]
  end
  local t = index[key]
  far = far or { bytes = share * bytes, messages = share * messages }
  t.bytes, t.messages = t.bytes + bytes, t.messages + messages
  t.far.bytes, t.far.messages = t.far.bytes + far.bytes, t.far.messages + far.messages
end

-- Gradients are summed over the replicas, in f32, bucket by bucket: once a step, or, where they are divided,
-- at every backward.
local function gradients(parameters, mesh, micro, send)
  for _, b in ipairs(sharding.buckets(parameters, mesh)) do
    if b.ranks > 1 and b.divided then
      local bytes, messages = wires.reduce_scatter(b.bytes, b.ranks)
      send('gradients', b.group, micro * bytes, micro * messages)
    elseif b.ranks > 1 then send('gradients', b.group, wires.all_reduce(b.bytes, b.ranks)) end
  end
end

-- What was updated in chunks, or is kept in chunks, gets to the ranks that need it whole. gathers: how often a
-- unit is gathered in one micro-batch, forward and backward.
local function parameters_of(list, mesh, gathers, send)
  for _, p in ipairs(list) do
    local stage, ranks = mesh.stage[p.group], p.replicas
    if ranks > 1 and stage > 0 then
      local bytes, messages = wires.all_gather(math.ceil(p.here / ranks) * p.bytes, ranks)
      local times = stage == 3 and gathers or 1
      send('parameters', p.wire, times * bytes, times * messages)
    end
  end
end

-- Read and written bytes of the tier. Each backward but the first reads the gradient, to add to it. A parameter without
-- a master is itself read for the update.
local function tier_of(p, mesh, gathers, micro, tier)
  if not mesh.offload then return end
  local master = sharding.has_master(p, mesh)
  local owned = sharding.share(p, mesh, 'optimizer')
  local both = 4 * micro * owned + (2 * mesh.moment + (master and 4 or 0)) * footprint.of_stream(owned)
  tier.written, tier.read = tier.written + both, tier.read + both
  if mesh.offload == 'parameters' then
    tier.written = tier.written + p.bytes * owned
    tier.read = tier.read + (gathers + (master and 0 or 1)) * p.bytes * owned
  end
end

---@return table[] list  of { wire, group, bytes, messages, far = { bytes, messages } between hosts }
---@return table tier    { read, written }
function traffic.of(units, context)
  local mesh, micro = context.mesh, context.batch.micro_batches
  local list, index, tier, model = {}, {}, { read = 0, written = 0 }, {}
  local function send(...) add(list, index, context, ...) end
  local function unit(parameters, gathers)
    gradients(parameters, mesh, micro, send)
    parameters_of(parameters, mesh, gathers, send)
    for _, p in ipairs(parameters) do tier_of(p, mesh, gathers, micro, tier) end
  end
  for _, u in ipairs(units) do
    local again = context.recompute and u.block
    for _, t in ipairs(u.traffic) do
      local times = micro * (t.pass == 'forward' and again and 2 or 1)
      send(t.wire, t.group, times * t.bytes, times * t.messages,
        t.far and { bytes = times * t.far.bytes, messages = times * t.far.messages })
    end
    local experts, dense = sharding.units(u)
    if u.block then
      unit(experts, micro * (again and 3 or 2))
      unit(dense, micro * 2)
    else
      for _, p in ipairs(dense) do model[#model + 1] = p end
    end
  end
  unit(model, micro * 2)
  if mesh.ranks > 1 then send('norm and loss', 'tokens', 2 * 8 * (mesh.ranks - 1), 2 * (mesh.ranks - 1)) end
  return list, tier
end

return traffic
