--- The planner: what a model will take on a layout, before a run and without its ranks.
--
--     local plan = lumoe.estimate {
--       model = { dim = 512, experts = 64, top_k = 2, encoder_layers = 12 },   -- estimate/description.lua
--       mesh = { ranks = 512, ep = 64, zero = { dense = 2 } },                 -- estimate/layout.lua
--       batch = { sequences = 4096, source = 128, target = 128 },              -- of a step, over all ranks
--       hardware = 'a100-40', precision = 'bf16',                              -- estimate/hardware.lua
--     }
--     print(plan.parameters.total, plan.memory.peak.total, plan.time.total)
--
-- All figures are of one rank, the busiest where shares differ. Pure Lua.
local description = require 'lumoe.estimate.description'
local exchange = require 'lumoe.estimate.exchange'
local hardware = require 'lumoe.estimate.hardware'
local layout = require 'lumoe.estimate.layout'
local memory = require 'lumoe.estimate.memory'
local sharding = require 'lumoe.estimate.sharding'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'
local time = require 'lumoe.estimate.time'
local traffic = require 'lumoe.estimate.traffic'
local units_of = require 'lumoe.estimate.model'

local estimate = { hardware = hardware, here = function(...) return require 'lumoe.estimate.here'(...) end,
  describe_mesh = layout.describe, from_options = description.from_options }

local OPTIONS = { model = true, mesh = true, batch = true, hardware = true, precision = true, recompute = true,
  overlap = true, masters = true, moments = true, gradients = true }
local BYTES = { f32 = 4, bf16 = 2 }

local function machine(given)
  if type(given) == 'table' then return given end
  if given and not hardware[given] then
    local names = {}
    for name in pairs(hardware) do names[#names + 1] = name end
    table.sort(names)
    status.argument("estimate: no hardware '%s'; there are %s", tostring(given), table.concat(names, ', '))
  end
  return given and hardware[given]
end

local function count(units, context)
  local n = { total = 0, active = 0, here = 0, owned = 0, experts = 0, narrow = 0 }
  for _, u in ipairs(units) do
    for _, p in ipairs(u.parameters) do
      n.total, n.active, n.here = n.total + p.whole, n.active + p.active, n.here + p.here
      local owned = memory.share(p, context.mesh, 'optimizer')
      n.owned = n.owned + owned
      if sharding.gradient_bytes(p, context.mesh) == 2 then n.narrow = n.narrow + owned end
      if p.group == 'expert' then n.experts = n.experts + p.whole end
    end
  end
  return n
end

--- Options:
--   model      estimate/description.lua
--   mesh       { ranks =, tp =, ep =, etp =, zero =, offload =, on_host = } as dist.mesh has them, or what it made
--   batch      { sequences, source, target, micro_batches }, all ranks' together
--   precision  'f32' or 'bf16' (parameters and activations; masters are f32)
--   masters    false: bf16 parameters have none, as optim.AdamW { masters = false }
--   moments    'f32' or 'bf16', as optim.AdamW has them
--   gradients  the same; of several micro-batches they are counted as f32, which the second makes them
--   recompute  activations of each layer are computed again in backward
--   hardware   a name of estimate/hardware.lua or a table like those; without it no times
--   overlap    computing and moving at once (false: one after the other)
--
-- Returns { parameters = { total, active, here, owned, experts }, memory = { peak, live, tier } by purpose,
-- wires = list of { wire, group, bytes, messages, far = { bytes, messages } }, sent = { bytes, messages }, tier = { read, written }, time,
-- fits = true, or false and why in `binds` }.
function estimate.plan(opts)
  opts = tensor.options(opts, OPTIONS, 'estimate')
  local precision = opts.precision or 'f32'
  if not BYTES[precision] then status.argument("estimate: precision is f32 or bf16, not '%s'", tostring(precision)) end
  local context = { mesh = layout.new(opts.mesh), model = description.model(opts.model), precision = precision,
    batch = description.batch(opts.batch), bytes = BYTES[precision], recompute = opts.recompute, overlap = opts.overlap }
  for _, what in ipairs { 'moments', 'gradients' } do
    if opts[what] and not BYTES[opts[what]] then
      status.argument("estimate: %s are f32 or bf16, not '%s'", what, tostring(opts[what]))
    end
  end
  context.mesh.masters, context.mesh.moment = opts.masters ~= false, BYTES[opts.moments or 'f32']
  context.mesh.bf16_gradients = opts.gradients == 'bf16' and context.batch.micro_batches == 1 and not context.mesh.offload
  local on = machine(opts.hardware)
  context.on_host = context.mesh.on_host or on and on.devices or context.mesh.ranks
  if context.model.experts > 1 then context.routing = exchange.routing(context.model, context.mesh.ep) end
  context.rows = math.ceil(context.batch.sequences / context.mesh.dp / context.batch.micro_batches)
  local units = units_of(context)
  local parameters = count(units, context)
  context.owned, context.narrow = parameters.owned, parameters.narrow

  local self = { context = context, parameters = parameters, memory = {}, sent = { bytes = 0, messages = 0 } }
  self.memory.peak, self.memory.tier, self.memory.live = memory.of(units, context)
  self.memory.tier.total = self.memory.tier.parameters + self.memory.tier.gradients + self.memory.tier.optimizer
  self.wires, self.tier = traffic.of(units, context)
  for _, t in ipairs(self.wires) do
    self.sent.bytes, self.sent.messages = self.sent.bytes + t.bytes, self.sent.messages + t.messages
  end
  if on then
    self.time = time.of(units, context, self.wires, self.tier, on)
    self.hardware = on
    self.fits = self.memory.peak.total <= on.memory and self.memory.tier.total <= on.tier.memory
    self.binds = self.memory.peak.total > on.memory and 'device memory'
      or self.memory.tier.total > on.tier.memory and 'memory of the second tier' or self.time.binds
  end
  return self
end

--- The largest n for which a plan of `model(n)` keeps within its limits. Options: those of a plan, but model is a
-- function of a whole number that makes models grow; limit: bytes of a rank's peak (the hardware's memory);
-- tier_limit: bytes of its second tier (the hardware's; else none); most = 2^40.
---@return integer n  0: not even the smallest fits
---@return table? plan  of model(n)
function estimate.largest(opts)
  local model, limit, tier_limit, most = opts.model, opts.limit, opts.tier_limit, opts.most or 2 ^ 40
  local on, rest = machine(opts.hardware), {}
  for key, value in pairs(opts) do
    if key ~= 'limit' and key ~= 'tier_limit' and key ~= 'most' then rest[key] = value end
  end
  limit, tier_limit = limit or on and on.memory, tier_limit or on and on.tier.memory
  if type(model) ~= 'function' then status.argument 'estimate.largest: model must be a function of a whole number' end
  if not limit then status.argument 'estimate.largest: wants a limit in bytes, or hardware' end
  local function fits(n)
    rest.model = model(n)
    local plan = estimate.plan(rest)
    return plan.memory.peak.total <= limit and (not tier_limit or plan.memory.tier.total <= tier_limit) and plan or nil
  end
  local low, best, high = 0, nil, 1
  local plan = fits(high)
  while plan and high < most do
    low, best, high = high, plan, math.min(2 * high, most)
    plan = fits(high)
  end
  if plan then return high, plan end
  while high - low > 1 do
    local middle = math.floor((low + high) / 2)
    plan = fits(middle)
    if plan then low, best = middle, plan else high = middle end
  end
  return low, best
end

return setmetatable(estimate, { __call = function(_, opts) return estimate.plan(opts) end })
