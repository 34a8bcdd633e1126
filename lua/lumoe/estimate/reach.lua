--- How much of the roofline our layers reach on this machine: small layers of each part (estimate/time.lua), forward and
-- backward, beside what the planner says of them. It takes the place of an assumed efficiency; what is assumed instead is
-- that other sizes reach as much, and `recipes/estimate.lua --times` tells how far that is off.
--
-- A layer takes P / p + M / m, where P and M are the planner's seconds of its products and of the rest. Two layers of
-- different width, of which the narrow one has more of the rest, give p and m.
local dist = require 'lumoe.dist'
local fastest = require 'lumoe.estimate.fastest'
local moe = require 'lumoe.moe'
local nn = require 'lumoe.nn'
local optim = require 'lumoe.optim'
local plan = require('lumoe.estimate').plan
local random = require 'lumoe.random'
local scope = require('lumoe.autograd').scope
local tensor = require 'lumoe.tensor'
local time = require 'lumoe.estimate.time'
local units_of = require 'lumoe.estimate.model'

local ROWS, LENGTH, WIDE, NARROW, HEADS, VOCAB, EXPERTS, DROPOUT = 32, 32, 256, 64, 4, 8192, 8, 0.1

-- ---- what the planner says -----------------------------------------------------------------

local function context_of(precision, dim, experts)
  return plan({ precision = precision, batch = { sequences = ROWS, source = LENGTH },
    model = { dim = dim, heads = HEADS, hidden = 4 * dim, vocab = VOCAB, encoder_layers = 1, decoder_layers = 0,
      experts = experts, top_k = math.min(2, experts), dropout = DROPOUT } }).context
end

-- { products, rest } in seconds at the roofline.
local function planned(hardware, precision, dim, experts, unit, part)
  local context = context_of(precision, dim, experts)
  for _, u in ipairs(units_of(context)) do
    if u.name == unit then return (time.of_unit(u, context, hardware))[part] end
  end
end

-- ---- what it takes -------------------------------------------------------------------------

-- Seconds of f(module, x), forward and backward.
local function seconds_of(precision, dim, module, f)
  module:initialize()
  module:to(precision)
  module:train()
  local x, grad = random.randn(ROWS, LENGTH, dim):to(precision), random.randn(ROWS, LENGTH, dim):to(precision)
  local parameters = module:named_parameters()
  x.requires_grad = true
  return fastest(function()
    scope(function()
      local y = f(module, x)
      y:backward { grad = y:numel() > 1 and grad or nil, last = true }
    end)
    x.grad = nil
    for _, p in ipairs(parameters) do p.tensor.grad = nil end
  end)
end

local function apply(module, x) return (module(x)) end

local make = {}

function make.dense(dim)
  return nn.TransformerEncoderLayer { dim = dim, heads = HEADS, hidden = 4 * dim, dropout = DROPOUT }
end

function make.experts(dim)
  return moe.Layer { dim = dim, experts = moe.FFN { experts = EXPERTS, hidden = 4 * dim, activation = 'relu' },
    router = moe.routers.top_k { dim = dim, top_k = 2 } }
end

-- ---- one over the other --------------------------------------------------------------------

local function both(share) return { products = share, rest = share } end

-- Where the two do not tell p from m, since something disturbed them, one share stands for both.
local function solve(wide, wide_seconds, narrow, narrow_seconds)
  local det = wide.products * narrow.rest - narrow.products * wide.rest
  local products = (wide_seconds * narrow.rest - narrow_seconds * wide.rest) / det
  local rest = (narrow_seconds * wide.products - wide_seconds * narrow.products) / det
  if products > 0 and rest > 0 then return { products = 1 / products, rest = 1 / rest } end
  return both((wide.products + wide.rest) / wide_seconds)
end

local function of_layers(hardware, precision, part, experts)
  local function measure(dim)
    return planned(hardware, precision, dim, experts, 'encoder.1', part), seconds_of(precision, dim, make[part](dim), apply)
  end
  local wide, wide_seconds = measure(WIDE)
  return solve(wide, wide_seconds, measure(NARROW))
end

local function of_loss(hardware, precision)
  local targets = (random.rand(ROWS, LENGTH) * VOCAB):int()
  local took = seconds_of(precision, WIDE, nn.Embedding { VOCAB, WIDE }, function(embedding, x)
    return x:linear_cross_entropy(embedding.weight, targets)
  end)
  local at_best = planned(hardware, precision, WIDE, 1, 'loss', 'loss')
  return both((at_best.products + at_best.rest) / took)
end

local function of_update(hardware, precision)
  local layer = nn.Linear { 2048, 2048, bias = false }
  layer:initialize()
  layer:to(precision)
  layer.weight.grad = tensor.zeros { 2048, 2048 }
  local optimizer = optim.AdamW(layer:named_parameters(), {})
  local took = fastest(function()
    dist.grad_norm(layer)
    optimizer:step { lr = 0 }
  end)
  return both(time.of_update(layer:numel(), context_of(precision, WIDE, 1), hardware) / took)
end

--- Of hardware without it: reach[precision][part], shares { products, rest } of the roofline. Collective.
---@return table<string, table<string, { products: number, rest: number }>>
return function(hardware)
  local reach = {}
  for _, precision in ipairs { 'f32', 'bf16' } do
    reach[precision] = { dense = of_layers(hardware, precision, 'dense', 1),
      experts = of_layers(hardware, precision, 'experts', EXPERTS), loss = of_loss(hardware, precision),
      update = of_update(hardware, precision) }
  end
  return reach
end
