--- Bytes of a rank by purpose, as lumoe.memory books them: what stays, and the peak of a step.
--
-- What stays: parameters, optimizer state (AdamW's m and v in f32, and an f32 master of every bf16 parameter).
-- ZeRO keeps a rank's chunk of them, ceil(n / replicas) elements of each parameter; offloading moves chunks to
-- the second tier, and here only what is in hand remains. The peak is looked for along the step: forward, the
-- backward unit by unit, as gradients come and what the tape held goes, and the update.
local block = require('lumoe.estimate.unit').block

local memory = {}

local PURPOSES = { 'parameters', 'gradients', 'optimizer', 'activations', 'exchange', 'staging' }
memory.PURPOSES = PURPOSES

local STAGE = { optimizer = 1, gradients = 2, parameters = 3 } -- from which ZeRO shards it
memory.BUCKET = 2 ^ 18 -- elements of a bucket on its way to or from the tier
local BUCKETS = 2 -- one moves while the other is updated

local function offloaded(mesh, what)
  return mesh.offload == 'parameters' or (mesh.offload == 'optimizer' and what ~= 'parameters')
end

--- Elements of a parameter that this rank keeps of `what`.
function memory.share(p, mesh, what)
  return mesh.zero[p.group] >= STAGE[what] and math.ceil(p.here / p.replicas) or p.here
end

local function state_bytes(p, n) return 2 * block(4 * n) + (p.bytes == 2 and block(4 * n) or 0) end

-- What a parameter takes here and in the tier, and what of it passes through.
local function add_parameter(p, mesh, kept, tier, passing)
  local bytes = {
    parameters = block(p.bytes * memory.share(p, mesh, 'parameters')),
    gradients = block(4 * memory.share(p, mesh, 'gradients')),
    optimizer = state_bytes(p, memory.share(p, mesh, 'optimizer')),
  }
  for what, n in pairs(bytes) do
    if offloaded(mesh, what) then tier[what] = tier[what] + n else kept[what] = kept[what] + n end
  end
  local zero = mesh.zero[p.group]
  if zero >= 3 or offloaded(mesh, 'parameters') then passing.parameters = passing.parameters + block(p.bytes * p.here) end
  if zero >= 2 or offloaded(mesh, 'gradients') then passing.gradients = passing.gradients + block(4 * p.here) end
end

local function zeros() return { parameters = 0, gradients = 0, optimizer = 0 } end

-- What a unit leaves until the step ends, and what its own backward needs in hand.
local function held(u, context)
  if not (context.recompute and u.block) then return u.kept, u.saved, u.exchange end
  return block(u.stream), 0, u.exchange_plan
end

--- Walks the step. Returns peak by purpose (and total), tier bytes by what they are.
---@return table peak, table tier, table live
function memory.of(units, context)
  local mesh, n = context.mesh, #units
  local kept, tier, of_unit, passing = zeros(), zeros(), {}, {}
  local kept_all, saved_before, exchange_before = 0, 0, 0
  for i, u in ipairs(units) do
    local mine, pass = zeros(), zeros()
    for _, p in ipairs(u.parameters) do add_parameter(p, mesh, mine, tier, pass) end
    for what, bytes in pairs(mine) do kept[what] = kept[what] + bytes end
    of_unit[i], passing[i] = mine, pass
    local k, s, x = held(u, context)
    kept_all, saved_before, exchange_before = kept_all + k, saved_before + s, exchange_before + x
  end
  local staging = 0
  if mesh.offload then
    staging = math.min(BUCKETS * memory.BUCKET, context.owned) * (4 + 8 + (context.bytes == 2 and 4 or 0))
  end

  local peak = { total = 0 }
  for _, what in ipairs(PURPOSES) do peak[what] = 0 end
  local function at(now)
    now.parameters = kept.parameters + (now.parameters or 0)
    now.optimizer = kept.optimizer
    local total = 0
    for _, what in ipairs(PURPOSES) do
      local bytes = now[what] or 0
      peak[what] = math.max(peak[what], bytes)
      total = total + bytes
    end
    peak.total = math.max(peak.total, total)
  end

  local gradients = context.batch.micro_batches > 1 and kept.gradients or 0
  for i = n, 1, -1 do
    local u = units[i]
    local k, s, x = held(u, context)
    if context.batch.micro_batches == 1 then gradients = gradients + of_unit[i].gradients end
    local again = context.recompute and u.block
    at {
      parameters = passing[i].parameters, gradients = gradients + passing[i].gradients,
      activations = kept_all + saved_before + (u.working or 2 * u.widest + u.stream)
        + (again and u.kept + u.saved - k or 0),
      exchange = exchange_before + u.exchange_now + (again and u.exchange - x or 0), staging = staging,
    }
    saved_before, exchange_before = saved_before - s, exchange_before - x
  end
  at { gradients = gradients, staging = staging } -- the update
  return peak, tier, { parameters = kept.parameters, optimizer = kept.optimizer }
end

return memory
