--- Bytes and messages that a rank sends on each wire in one step, and what goes to and from the second tier.
local memory = require 'lumoe.estimate.memory'
local wires = require 'lumoe.estimate.wires'

local traffic = {}

local function add(list, index, wire, group, bytes, messages)
  if bytes == 0 then return end
  local key = wire .. '/' .. group
  if not index[key] then
    index[key] = { wire = wire, group = group, bytes = 0, messages = 0 }
    list[#list + 1] = index[key]
  end
  index[key].bytes, index[key].messages = index[key].bytes + bytes, index[key].messages + messages
end

-- Gradients are summed over the replicas, in f32; what ZeRO scatters it gathers again.
local function replicas(p, mesh, micro, send)
  local zero, ranks, group = mesh.zero[p.group], p.replicas, p.wire
  if ranks == 1 then return end
  local gather, messages = wires.all_gather(math.ceil(p.here / ranks) * p.bytes, ranks)
  if zero >= 2 then
    local bytes, count = wires.reduce_scatter(4 * p.here, ranks)
    send('gradients', group, micro * bytes, micro * count)
  else send('gradients', group, wires.all_reduce(4 * p.here, ranks)) end
  if zero == 3 then send('parameters', group, 2 * micro * gather, 2 * micro * messages) -- forward and backward
  elseif zero > 0 then send('parameters', group, gather, messages) end
end

-- Read and written bytes of the tier.
local function tier_of(p, mesh, micro, tier)
  if not mesh.offload then return end
  local owned, state = memory.share(p, mesh, 'optimizer'), p.bytes == 2 and 12 or 8
  tier.written = tier.written + (4 + state) * owned
  tier.read = tier.read + (4 + state) * owned
  if mesh.offload == 'parameters' then
    local n = memory.share(p, mesh, 'parameters')
    tier.written = tier.written + p.bytes * n
    tier.read = tier.read + 2 * micro * p.bytes * n
  end
end

---@return table[] list  of { wire, group, bytes, messages }
---@return table tier    { read, written }
function traffic.of(units, context)
  local mesh, micro = context.mesh, context.batch.micro_batches
  local list, index, tier = {}, {}, { read = 0, written = 0 }
  local function send(...) add(list, index, ...) end
  for _, u in ipairs(units) do
    for _, t in ipairs(u.traffic) do
      local times = micro * (t.pass == 'forward' and context.recompute and u.block and 2 or 1)
      send(t.wire, t.group, times * t.bytes, times * t.messages)
    end
    for _, p in ipairs(u.parameters) do
      replicas(p, mesh, micro, send)
      tier_of(p, mesh, micro, tier)
    end
  end
  if mesh.ranks > 1 then send('norm and loss', 'tokens', 2 * 8 * (mesh.ranks - 1), 2 * (mesh.ranks - 1)) end
  return list, tier
end

return traffic
