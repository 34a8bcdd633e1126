--- Bytes of a rank by purpose, as lumoe.memory books them: what stays, and the peak of a step.
--
-- What stays: parameters, optimizer state (AdamW's m and v in f32 or bf16, and an f32 master of every bf16
-- parameter, unless there are none).
-- ZeRO keeps a rank's chunk of them, ceil(n / replicas) elements of each parameter; offloading moves chunks to
-- the second tier, and here only what is in hand remains. The peak is looked for along the step: forward, the
-- backward unit by unit, as gradients come and leave and what the tape held goes, and the update.
--
-- It is the peak of a rank that is short of memory, where each bucket of gradients has to arrive before anything new
-- is made, and no parameters are read ahead (lumoe.memory_limit): what a limit must allow. It does not depend on how
-- fast other ranks are. Where there is room, up to `in_flight` more is in use.
local footprint = require 'lumoe.estimate.footprint'
local sharding = require 'lumoe.estimate.sharding'

local memory = {}

local PURPOSES = { 'parameters', 'gradients', 'optimizer', 'activations', 'exchange' }
memory.PURPOSES = PURPOSES
memory.share = sharding.share

-- ---- activations ---------------------------------------------------------------------------

-- What a unit leaves until the step ends, and until its own backward.
local function held(u, context)
  if not (context.recompute and u.block) then return u.kept, u.saved, u.exchange end
  return u.stream, 0, u.exchange_plan
end

-- Gradients on their way through a unit: of its widest result, of experts' rows and weights, and of the stream, twice
-- where it branches.
local function in_hand(u) return u.widest + u.rows + u.weights + 2 * u.stream end

-- A block again: all of it, and after that only what its backward needs, and the gradients.
local function repeated(u)
  local all = u.kept + u.saved + u.stream
  return math.max(all, all - u.loose + in_hand(u))
end

-- ---- the step ------------------------------------------------------------------------------

local function sum(into, from)
  for what, n in pairs(from) do into[what] = (into[what] or 0) + n end
end

-- Gradients of a unit that come in a backward, before any of them leaves.
local function come(f, context)
  return context.batch.micro_batches == 1 and math.max(f.undivided, f.here.gradients) or f.undivided
end

-- Everything that is known before the walk: per unit its footprints, over all of them the sums.
local function survey(units, context)
  local s = { of = {}, here = {}, away = { parameters = 0, gradients = 0, optimizer = 0 }, kept = 0, saved = 0, exchange = 0,
    plans = 0, shadows = 0, model = {}, ahead = 0 }
  for i, u in ipairs(units) do
    local experts, dense = sharding.units(u)
    local of = { experts = footprint.of(experts, context.mesh), dense = footprint.of(dense, context.mesh),
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
    s.shadows = s.shadows + (context.recompute and 0 or u.shadows)
  end
  s.model_footprint = footprint.of(s.model, context.mesh)
  s.model_gradients = come(s.model_footprint, context) -- there from the loss on: the embedding's is most of it
  s.ahead = math.max(s.ahead, s.model_footprint.ahead)
  return s
end

---@class lumoe.estimate.Walk  through the backward pass, last unit first
local Walk = {}
Walk.__index = Walk

local function new_walk(units, context)
  local self = setmetatable({ context = context, mesh = context.mesh, s = survey(units, context), peak = { total = 0 } }, Walk)
  for _, what in ipairs(PURPOSES) do self.peak[what] = 0 end
  self.once = context.batch.micro_batches == 1
  self.gradients = self.once and 0 or self.s.here.gradients -- what has come so far
  self.arguments = 0 -- f32 gradients of recomputed blocks' arguments, which stay to the end of the step
  self.saved, self.exchange = self.s.saved, self.s.exchange
  self.under_way, self.in_flight = footprint.flight(context.mesh), 0
  return self
end

-- A moment: bytes by purpose, of parameters and optimizer those beside what stays.
function Walk:at(now)
  now.parameters = self.s.here.parameters + (now.parameters or 0)
  now.optimizer = self.s.here.optimizer + (now.optimizer or 0)
  local total = 0
  for _, what in ipairs(PURPOSES) do
    local bytes = now[what] or 0
    self.peak[what] = math.max(self.peak[what], bytes)
    total = total + bytes
  end
  self.peak.total = math.max(self.peak.total, total)
end

-- Gradients of a unit of dist.shard are there, then on their way, then a chunk of each is left. around: parameters that
-- are gathered, of units around it, as its own are gone; model: the model's gradients, which wait for the end.
function Walk:done(parameters, f, around, model, activations)
  if #parameters == 0 then return end
  for _, moment in ipairs(footprint.travelling(parameters, self.mesh, not self.once)) do
    self:at { parameters = around, gradients = self.gradients + moment.gradients + model + self.arguments,
      activations = activations, exchange = self.exchange + moment.exchange }
  end
  if self.once then self.gradients = self.gradients + f.here.gradients end
  self.in_flight = math.max(self.in_flight, self.under_way(parameters))
end

-- A layer: computed again where that is asked for, gone through, its gradients sent.
function Walk:layer(u, of, base)
  local s = self.s
  local k, v, x = held(u, self.context)
  local model = s.model_footprint -- gathered, and the embedding's gradient there, from the loss on
  local around = model.gathered
  local inside = around + of.dense.gathered + of.experts.gathered
  if self.context.recompute then -- its own gradients are yet to come
    self:at { parameters = inside, gradients = self.gradients + s.model_gradients + self.arguments,
      exchange = self.exchange + u.exchange_now + u.exchange - x, activations = base + repeated(u) - k }
    self.arguments = self.arguments + u.arguments
  end
  local before = math.max(0, come(of.experts, self.context) - u.weights) -- what experts' last product comes after
  self:at { parameters = inside, gradients = self.gradients + s.model_gradients + self.arguments + before,
    exchange = self.exchange + u.exchange_now, activations = base + in_hand(u) }
  self.saved, self.exchange = self.saved - v, self.exchange - x + u.exchange_plan
  if not self.context.recompute then self.exchange = self.exchange + u.shadows end -- Lua holds them
  local left = base - v + 3 * u.stream
  self:done(of.expert_list, of.experts, around + of.dense.gathered, s.model_gradients, left + u.before)
  self:done(of.dense_list, of.dense, around, s.model_gradients, left)
end

function Walk:unit(u, of)
  local s, base = self.s, self.s.kept + self.saved
  if u.block then return self:layer(u, of, base) end
  self:at { parameters = s.model_footprint.gathered, gradients = self.gradients + s.model_gradients + self.arguments,
    exchange = self.exchange, activations = base + (u.working or in_hand(u)) }
  self.saved = self.saved - u.saved
end

--- Returns peak by purpose, its total, and in_flight, by how much it may be more; tier bytes by what they are; and what
-- stays between steps.
---@return table peak, table tier, table live
function memory.of(units, context)
  local walk = new_walk(units, context)
  local s = walk.s
  for i = #units, 1, -1 do walk:unit(units[i], s.of[i]) end
  walk.exchange = s.plans + s.shadows
  walk:done(s.model, s.model_footprint, 0, 0, s.kept)
  walk:at { gradients = walk.gradients, optimizer = footprint.passing_state(units, context.mesh), exchange = s.plans } -- the update
  walk.peak.in_flight = walk.in_flight + s.ahead
  return walk.peak, s.away, { parameters = s.here.parameters, optimizer = s.here.optimizer }
end

return memory
