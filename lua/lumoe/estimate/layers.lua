--- What each part of a Transformer costs, part by part as lua/lumoe/nn and lua/lumoe/moe compute it.
-- `u` is the unit (estimate/unit.lua) that pays; `tokens` positions of this rank, padding included.
local block = require('lumoe.estimate.unit').block
local experts = require 'lumoe.estimate.experts'
local wires = require 'lumoe.estimate.wires'

local layers = {}

local LOSS_ROWS = 512 -- of logits at a time (runtime/ops/linear_loss.c)

-- A sum over the tensor group: forward where partial sums end, backward where the cut region begins.
local function reduce(u, pass, bytes)
  local tp = u.context.mesh.tp
  if tp > 1 then u:sends('tp all-reduce', 'tensor', pass, wires.all_reduce(bytes, tp)) end
end

function layers.norm(u, tokens, stays)
  local dim = u.context.model.dim
  u:parameter { dim }
  u:parameter { dim }
  u[stays or 'makes'](u, tokens * dim)
  u:saves(2 * tokens, 4) -- means, 1 / deviations
end

--- y = x W' + b. cut: 'columns' (outputs spread over tp) or 'rows' (inputs; y is then a partial sum). stays: 'makes', or how
-- else y stays (estimate/unit.lua).
local function linear(u, tokens, inputs, outputs, cut, stays)
  local tp = u.context.mesh.tp
  u:parameter({ outputs, inputs }, { cut = cut == 'columns' and 1 or cut == 'rows' and 2 or nil })
  u:parameter({ outputs }, { cut = cut == 'columns' and 1 or nil })
  local n, k = outputs / (cut == 'columns' and tp or 1), inputs / (cut == 'rows' and tp or 1)
  u[stays or 'makes'](u, tokens * n)
  u:product(tokens, n, k)
end

-- x + dropout of what a part gave: one result, and a bit for each element that was kept.
local function residual(u, tokens, stays)
  local dim = u.context.model.dim
  u[stays](u, tokens * dim)
  if u.context.model.dropout > 0 then u:saves(tokens * math.ceil(dim / 8), 1) end
end

-- sequences of `queries` positions look at `keys` positions each. memory: keys and values come from elsewhere.
local function attention(u, sequences, queries, keys, memory)
  local model, tp = u.context.model, u.context.mesh.tp
  local dim, tokens = model.dim, sequences * queries
  layers.norm(u, tokens, 'saves')
  if memory then
    linear(u, tokens, dim, dim, 'columns', 'saves')
    linear(u, sequences * keys, dim, 2 * dim, 'columns', 'saves')
    reduce(u, 'backward', sequences * keys * dim * u.context.bytes)
  else
    linear(u, tokens, dim, 3 * dim, 'columns', 'saves')
  end
  u:product(tokens, keys, dim / tp)
  u:product(tokens, dim / tp, keys)
  u:saves(tokens * dim / tp)
  u:saves(tokens * model.heads / tp, 4)
  linear(u, tokens, dim, dim, 'rows', 'passes')
  reduce(u, 'forward', tokens * dim * u.context.bytes)
  reduce(u, 'backward', tokens * dim * u.context.bytes)
  residual(u, tokens, 'saves')
end

local function feed_forward(u, tokens)
  local model, tp = u.context.model, u.context.mesh.tp
  local wide = model.activation == 'swiglu' and 2 or 1
  linear(u, tokens, model.dim, wide * model.hidden, 'columns', 'saves')
  if model.activation ~= 'relu' then u:saves(tokens * model.hidden / tp) end -- which is part of the product
  linear(u, tokens, model.hidden, model.dim, 'rows', 'passes')
  reduce(u, 'forward', tokens * model.dim * u.context.bytes)
  reduce(u, 'backward', tokens * model.dim * u.context.bytes)
end

-- ---- units ---------------------------------------------------------------------------------

local function last_part(u, tokens, with_experts)
  layers.norm(u, tokens, with_experts and 'makes' or 'saves')
  u.before = u.saved -- which is there until backward comes to the parts before
  if with_experts then
    u.part = 'experts'
    experts(u, tokens)
    u.part = 'dense'
  else feed_forward(u, tokens) end
  u.stream = block(tokens * u.context.model.dim * u.context.bytes) -- what goes on to the next unit, and its gradient back
  if with_experts then u.loose = u.loose + 2 * u.stream end -- what they gave, and the layer
  residual(u, tokens, 'makes')
end

function layers.encoder(u, sequences, source, with_experts)
  u.arguments = block(4 * sequences * source * u.context.model.dim)
  attention(u, sequences, source, source)
  last_part(u, sequences * source, with_experts)
end

function layers.decoder(u, sequences, source, target, with_experts)
  u.arguments = block(4 * sequences * target * u.context.model.dim) + block(4 * sequences * source * u.context.model.dim)
  attention(u, sequences, target, target)
  attention(u, sequences, target, source, true)
  last_part(u, sequences * target, with_experts)
end

--- The table itself is the loss's, whose backward comes first.
function layers.embedding(u, tokens)
  local model = u.context.model
  u:makes(tokens, 8) -- ids and tags
  u:makes(tokens, 8)
  for _ = 1, model.dropout > 0 and 3 or 2 do u:makes(tokens * model.dim) end -- rows, scaled, dropped out
  if model.dropout > 0 then u:saves(tokens * math.ceil(model.dim / 8), 1) end
  reduce(u, 'forward', tokens * model.dim * u.context.bytes)
end

--- The loss, chunk by chunk with its gradients, against the embedding.
function layers.loss(u, tokens)
  local model, tp = u.context.model, u.context.mesh.tp
  local classes = math.ceil(model.vocab / tp)
  u.part = 'loss'
  u:parameter({ model.vocab, model.dim }, { cut = 1 })
  u:product(tokens, classes, model.dim)
  u:saves(tokens * model.dim)
  u:saves(classes * model.dim, 4)
  local chunk = block(math.min(LOSS_ROWS, tokens) * classes * u.context.bytes)
  u.working = math.max(chunk, block(4 * classes * model.dim)) -- logits; later the table's gradient, scaled
  if tp > 1 then -- of each row its largest logit, sum of exponents, target's logit
    for from = 0, tokens - 1, LOSS_ROWS do
      u:sends('tp all-gather', 'tensor', 'once', wires.all_gather(12 * math.min(LOSS_ROWS, tokens - from), tp))
    end
    reduce(u, 'backward', tokens * model.dim * u.context.bytes)
  end
end

return layers
