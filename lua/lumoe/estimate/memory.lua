--- Bytes of a rank by purpose, as lumoe.memory books them: what stays, and the peak of a step.
--
-- What stays: parameters, optimizer state (AdamW's m and v in f32, and an f32 master of every bf16 parameter).
-- ZeRO keeps a rank's chunk of them, ceil(n / replicas) elements of each parameter; offloading moves chunks to
-- the second tier, and here only what is in hand remains. The peak is looked for along the step: forward, the
-- backward unit by unit, as gradients come and what the tape held goes, and the update.
local block = require('lumoe.estimate.unit').block
local wires = require 'lumoe.estimate.wires'

local memory = {}

local PURPOSES = { 'parameters', 'gradients', 'optimizer', 'activations', 'exchange' }
memory.PURPOSES = PURPOSES

local STAGE = { optimizer = 1, gradients = 2, parameters = 3 } -- from which ZeRO shards it

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

-- Windows through which a stream's state passes in the update (optim/stream.lua): f32, booked as the optimizer's.
local WINDOWS, BUCKET, GRAIN = 3, 2 ^ 21, 1024
local function windows(elements, slots, bucket)
  if elements == 0 then return 0 end
  local each = math.max(GRAIN, math.floor((bucket or BUCKET) / (4 * slots) / GRAIN) * GRAIN)
  return math.min(WINDOWS, math.ceil(elements / each)) * slots * block(4 * each)
end

-- One stream for bf16 parameters (gradient, m, v, master), one for those that stay f32, one after the other.
local function passing_state(units, mesh)
  if not mesh.offload then return 0 end
  local elements = { [2] = 0, [4] = 0 }
  for _, u in ipairs(units) do
    for _, p in ipairs(u.parameters) do
      elements[p.bytes] = elements[p.bytes] + math.ceil(memory.share(p, mesh, 'optimizer') / GRAIN) * GRAIN
    end
  end
  return math.max(windows(elements[2], 4, mesh.bucket), windows(elements[4], 3, mesh.bucket))
end

-- Scratch of the largest sum of gradients, and the plans that the layers keep.
local function reducing(units)
  local plans, scratch = 0, 0
  for _, u in ipairs(units) do
    plans = plans + u.exchange_plan
    for _, p in ipairs(u.parameters) do scratch = math.max(scratch, wires.all_reduce_scratch(4 * p.here, p.replicas)) end
  end
  return plans + block(scratch)
end

local function zeros() return { parameters = 0, gradients = 0, optimizer = 0 } end

-- What a unit leaves until the step ends, and what its own backward needs in hand.
local function held(u, context)
  if not (context.recompute and u.block) then return u.kept, u.saved, u.exchange end
  return u.stream, 0, u.exchange_plan
end

-- Gradients on their way through a unit: those of its widest result and of what that came from, and the stream's.
local function in_hand(u) return 2 * u.widest + u.stream end

-- A block again: all of it, and after that only what its backward needs, and the gradients.
local function repeated(u)
  local all = u.kept + u.saved + u.stream
  return math.max(all, all - u.loose + in_hand(u))
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
  local peak = { total = 0 }
  for _, what in ipairs(PURPOSES) do peak[what] = 0 end
  local function at(now)
    now.parameters = kept.parameters + (now.parameters or 0)
    now.optimizer = kept.optimizer + (now.optimizer or 0)
    local total = 0
    for _, what in ipairs(PURPOSES) do
      local bytes = now[what] or 0
      peak[what] = math.max(peak[what], bytes)
      total = total + bytes
    end
    peak.total = math.max(peak.total, total)
  end

  local gradients, arguments = context.batch.micro_batches > 1 and kept.gradients or 0, 0
  for i = n, 1, -1 do
    local u = units[i]
    local k, s, x = held(u, context)
    local again = context.recompute and u.block
    local exchange = exchange_before + u.exchange_now + (again and u.exchange - x or 0)
    if again then -- its own gradients are yet to come
      at { parameters = passing[i].parameters, gradients = gradients + arguments, exchange = exchange,
        activations = kept_all + saved_before + repeated(u) - k }
      arguments = arguments + u.arguments -- their f32 gradients, which stay to the end of the step
    end
    if context.batch.micro_batches == 1 then gradients = gradients + of_unit[i].gradients end
    at { parameters = passing[i].parameters, gradients = gradients + passing[i].gradients + arguments, exchange = exchange,
      activations = kept_all + saved_before + (u.working or in_hand(u)) }
    saved_before, exchange_before = saved_before - s, exchange_before - x
  end
  at { gradients = gradients, exchange = reducing(units) } -- gradients are summed
  at { gradients = gradients, optimizer = passing_state(units, mesh) } -- the update
  return peak, tier, { parameters = kept.parameters, optimizer = kept.optimizer }
end

return memory
