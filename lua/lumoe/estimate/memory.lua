--- Bytes of a rank by purpose, as lumoe.memory books them: what stays, and the peak of a step.
--
-- What stays: parameters, optimizer state (AdamW's m and v in f32, and an f32 master of every bf16 parameter).
-- ZeRO keeps a rank's chunk of them, ceil(n / replicas) elements of each parameter; offloading moves chunks to
-- the second tier, and here only what is in hand remains. The peak is looked for along the step: forward, the
-- backward unit by unit, as gradients come and leave and what the tape held goes, and the update.
local block = require('lumoe.estimate.unit').block
local sharding = require 'lumoe.estimate.sharding'
local wires = require 'lumoe.estimate.wires'

local memory = {}

local PURPOSES = { 'parameters', 'gradients', 'optimizer', 'activations', 'exchange' }
memory.PURPOSES = PURPOSES
memory.share = sharding.share

-- ---- what stays ----------------------------------------------------------------------------

local function state_bytes(p, n) return 2 * block(4 * n) + (p.bytes == 2 and block(4 * n) or 0) end

local function bytes_of(p, mesh)
  return {
    parameters = block(p.bytes * sharding.share(p, mesh, 'parameters')),
    gradients = block(4 * sharding.share(p, mesh, 'gradients')),
    optimizer = state_bytes(p, sharding.share(p, mesh, 'optimizer')),
  }
end

-- A list of parameters: what stays here, what is in the tier; and what is here for as long as their unit needs it,
-- whole parameters and gradients that are yet to be divided.
local function footprint(parameters, mesh)
  local f = { here = { parameters = 0, gradients = 0, optimizer = 0 }, away = { parameters = 0, gradients = 0, optimizer = 0 },
    gathered = 0, undivided = 0, ahead = 0 }
  for _, p in ipairs(parameters) do
    for what, n in pairs(bytes_of(p, mesh)) do
      local where = sharding.is_away(mesh, what) and f.away or f.here
      where[what] = where[what] + n
    end
    local stage = sharding.stage(p, mesh)
    if stage >= 3 then f.gathered = f.gathered + block(p.bytes * p.here) end
    if stage >= 2 then f.undivided = f.undivided + block(4 * p.here) end
  end
  if sharding.is_away(mesh, 'parameters') then f.ahead = f.away.parameters end
  return f
end

-- ---- what passes through -------------------------------------------------------------------

-- Windows through which a stream's state passes in the update (optim/stream.lua), booked as the optimizer's.
local WINDOWS, STREAM, GRAIN = 3, 2 ^ 21, 1024
local function windows(elements, slots, parameter, bucket)
  if elements == 0 then return 0 end
  local each = math.max(GRAIN, math.floor((bucket or STREAM) / (4 * (slots + 1)) / GRAIN) * GRAIN)
  return math.min(WINDOWS, math.ceil(elements / each)) * ((slots + 1) * block(4 * each) + block(parameter * each))
end

-- One stream for bf16 parameters (m, v, master), one for those that stay f32, one after the other.
local function passing_state(units, mesh)
  if not mesh.offload then return 0 end
  local elements, moves = { [2] = 0, [4] = 0 }, mesh.offload == 'parameters' and 1 or 0
  for _, u in ipairs(units) do
    for _, p in ipairs(u.parameters) do
      elements[p.bytes] = elements[p.bytes] + math.ceil(sharding.share(p, mesh, 'optimizer') / GRAIN) * GRAIN
    end
  end
  return math.max(windows(elements[2], 3, 2 * moves, mesh.bucket), windows(elements[4], 2, 4 * moves, mesh.bucket))
end

-- What a unit's gradients take while they travel: buffers, bucket by bucket, and of those alone in theirs, themselves.
local function travelling(parameters, mesh)
  local buckets, alone = sharding.buckets(parameters, mesh), 0
  for _, b in ipairs(buckets) do
    local moves = b.ranks > 1
    b.buffers = b.count > 1 and block(b.bytes) or 0 -- packed
    if b.count == 1 and b.divided then alone = alone + b.taken end
    if moves then b.buffers = b.buffers + block(b.divided and b.bytes or wires.all_reduce_scratch(b.bytes, b.ranks)) end
  end
  return buckets, alone
end

-- Buffers of the buckets under way. Expected are those of this unit and of the one before; a rank that runs ahead of the
-- others may have more, up to a bound. Gathering a unit waits for what is under way.
local function flight()
  local units = {}
  return function(buckets, gathers)
    if gathers then units = {} end
    table.insert(units, buckets)
    local expected, bound, gradients = 0, 0, 0
    for i = #units, 1, -1 do
      for k = #units[i], 1, -1 do
        local b = units[i][k]
        gradients = gradients + b.bytes
        if gradients > sharding.IN_FLIGHT and gradients > b.bytes then return expected, bound end
        bound = bound + b.buffers
        if i >= #units - 1 then expected = expected + b.buffers end
      end
    end
    return expected, bound
  end
end

-- ---- activations ---------------------------------------------------------------------------

-- What a unit leaves until the step ends, and until its own backward.
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

-- ---- the step ------------------------------------------------------------------------------

local function sum(into, from)
  for what, n in pairs(from) do into[what] = (into[what] or 0) + n end
end

-- Everything that is known before the walk: per unit its footprints, over all of them the sums.
local function survey(units, context)
  local s = { of = {}, here = {}, away = { parameters = 0, gradients = 0, optimizer = 0 }, kept = 0, saved = 0, exchange = 0,
    plans = 0, model = {}, ahead = 0 }
  for i, u in ipairs(units) do
    local experts, dense = sharding.units(u)
    local of = { experts = footprint(experts, context.mesh), dense = footprint(dense, context.mesh),
      expert_list = experts, dense_list = dense }
    for _, f in ipairs { of.experts, of.dense } do
      sum(s.here, f.here)
      sum(s.away, f.away)
    end
    if u.block then s.ahead = math.max(s.ahead, of.dense.ahead) end -- a layer comes after experts, or the model
    if not u.block then
      for _, p in ipairs(dense) do s.model[#s.model + 1] = p end
    end
    s.of[i] = of
    local k, v, x = held(u, context)
    s.kept, s.saved, s.exchange, s.plans = s.kept + k, s.saved + v, s.exchange + x, s.plans + u.exchange_plan
  end
  s.model_footprint = footprint(s.model, context.mesh)
  s.ahead = math.max(s.ahead, s.model_footprint.ahead)
  return s
end

local function books(s)
  local peak = { total = 0 }
  for _, what in ipairs(PURPOSES) do peak[what] = 0 end
  return peak, function(now)
    now.parameters = s.here.parameters + (now.parameters or 0)
    now.optimizer = s.here.optimizer + (now.optimizer or 0)
    local total = 0
    for _, what in ipairs(PURPOSES) do
      local bytes = now[what] or 0
      peak[what] = math.max(peak[what], bytes)
      total = total + bytes
    end
    peak.total = math.max(peak.total, total)
  end
end

--- Walks the step. Returns peak by purpose (and total; in_flight, by which it depends on how fast others are), tier bytes by what they are, and what stays between steps.
---@return table peak, table tier, table live
function memory.of(units, context)
  local mesh, s = context.mesh, survey(units, context)
  local peak, at = books(s)
  local once = context.batch.micro_batches == 1
  local gradients = once and 0 or s.here.gradients -- what has come so far
  local arguments = 0 -- f32 gradients of recomputed blocks' arguments, which stay to the end of the step
  local model, saved, exchange = s.model_footprint, s.saved, s.exchange
  local under_way, in_flight = flight(), 0

  -- A unit's gradients are there, then on their way, then a chunk of each is left.
  local function done(list, f, others, activations)
    if #list == 0 then return end
    local buckets, alone = travelling(list, mesh)
    at { parameters = others + f.gathered, gradients = gradients + math.max(f.undivided, f.here.gradients) + arguments,
      activations = activations, exchange = exchange }
    if once then gradients = gradients + f.here.gradients end
    local moving, bound = under_way(buckets, f.gathered > 0)
    at { parameters = others + f.gathered, gradients = gradients + alone + arguments, activations = activations,
      exchange = exchange + moving }
    in_flight = math.max(in_flight, bound)
  end

  for i = #units, 1, -1 do
    local u, of = units[i], s.of[i]
    local k, v, x = held(u, context)
    local again = context.recompute and u.block
    local base = s.kept + saved
    local whole = model.gathered + s.ahead
    if u.block then
      gradients = gradients + model.undivided -- the embedding's, from the loss on
      if again then -- its own gradients are yet to come
        at { parameters = whole + of.dense.gathered + of.experts.gathered, gradients = gradients + arguments,
          exchange = exchange + u.exchange_now + u.exchange - x, activations = base + repeated(u) - k }
        arguments = arguments + u.arguments
      end
      at { parameters = whole + of.dense.gathered + of.experts.gathered, gradients = gradients + arguments,
        exchange = exchange + u.exchange_now, activations = base + in_hand(u) }
      done(of.expert_list, of.experts, whole + of.dense.gathered, base - v + 3 * u.stream)
      done(of.dense_list, of.dense, whole, base - v + 3 * u.stream)
      gradients = gradients - model.undivided
    else
      at { parameters = whole, gradients = gradients + model.undivided + arguments, exchange = exchange,
        activations = base + (u.working or in_hand(u)) }
    end
    saved, exchange = saved - v, exchange - x
  end
  exchange = s.plans
  done(s.model, model, 0, s.kept)
  at { gradients = gradients, optimizer = passing_state(units, mesh), exchange = exchange } -- the update
  peak.in_flight = in_flight
  return peak, s.away, { parameters = s.here.parameters, optimizer = s.here.optimizer }
end

return memory
