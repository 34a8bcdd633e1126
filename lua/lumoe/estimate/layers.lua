--- What each part of a Transformer costs, part by part as lua/lumoe/nn and lua/lumoe/moe compute it.
-- `u` is the unit (estimate/unit.lua) that pays; `tokens` positions of this rank, padding included.
local block = require('lumoe.estimate.unit').block
local wires = require 'lumoe.estimate.wires'

local layers = {}

local LOSS_ROWS = 512 -- of logits at a time (runtime/ops/linear_loss.c)
local HEAD_WORDS = 5 -- before the counts in what ranks tell each other of a plan (runtime/moe/plan_impl.h)

-- A sum over the tensor group: forward where partial sums end, backward where the cut region begins.
local function reduce(u, pass, bytes)
  local tp = u.context.mesh.tp
  if tp > 1 then u:sends('tp all-reduce', 'tensor', pass, wires.all_reduce(bytes, tp)) end
end

function layers.norm(u, tokens)
  local dim = u.context.model.dim
  u:parameter { dim }
  u:parameter { dim }
  u:makes(tokens * dim)
  u:saves(tokens, 4) -- mean
  u:saves(tokens, 4) -- 1 / deviation
end

--- y = x W' + b. cut: 'columns' (outputs spread over tp) or 'rows' (inputs; y is then a partial sum).
local function linear(u, tokens, inputs, outputs, cut)
  local tp = u.context.mesh.tp
  u:parameter({ outputs, inputs }, { cut = cut == 'columns' and 1 or cut == 'rows' and 2 or nil })
  u:parameter({ outputs }, { cut = cut == 'columns' and 1 or nil })
  local n, k = outputs / (cut == 'columns' and tp or 1), inputs / (cut == 'rows' and tp or 1)
  u:makes(tokens * n)
  u:product(tokens, n, k)
end

-- Dropout of what a part gave, and x + it.
local function residual(u, tokens)
  local model = u.context.model
  u.stream = block(tokens * model.dim * u.context.bytes) -- what goes on to the next unit, and its gradient back
  u.loose = u.loose + (model.dropout > 0 and 2 or 1) * u.stream
  if model.dropout > 0 then u:makes(tokens * model.dim) end
  u:makes(tokens * model.dim)
end

-- sequences of `queries` positions look at `keys` positions each. memory: keys and values come from elsewhere.
local function attention(u, sequences, queries, keys, memory)
  local model, tp = u.context.model, u.context.mesh.tp
  local dim, tokens = model.dim, sequences * queries
  layers.norm(u, tokens)
  if memory then
    linear(u, tokens, dim, dim, 'columns')
    linear(u, sequences * keys, dim, 2 * dim, 'columns')
    reduce(u, 'backward', sequences * keys * dim * u.context.bytes)
  else
    linear(u, tokens, dim, 3 * dim, 'columns')
    for _ = 1, 2 do -- rotary positions of queries and keys
      u:makes(tokens * dim / tp)
      u:saves(tokens, 4)
    end
  end
  u:product(tokens, keys, dim / tp)
  u:product(tokens, dim / tp, keys)
  u:makes(tokens * dim / tp)
  u:saves(tokens * model.heads / tp, 4)
  linear(u, tokens, dim, dim, 'rows')
  reduce(u, 'forward', tokens * dim * u.context.bytes)
  reduce(u, 'backward', tokens * dim * u.context.bytes)
  residual(u, tokens)
end

local function feed_forward(u, tokens)
  local model, tp = u.context.model, u.context.mesh.tp
  local wide = model.activation == 'swiglu' and 2 or 1
  linear(u, tokens, model.dim, wide * model.hidden, 'columns')
  u:makes(tokens * model.hidden / tp)
  linear(u, tokens, model.hidden, model.dim, 'rows')
  reduce(u, 'forward', tokens * model.dim * u.context.bytes)
  reduce(u, 'backward', tokens * model.dim * u.context.bytes)
end

-- ---- mixture of experts --------------------------------------------------------------------

local function router(u, tokens)
  local model = u.context.model
  local experts, top_k = model.experts, model.top_k
  u:parameter({ experts, model.dim }, { f32 = true })
  if u.context.bytes ~= 4 then u:makes(tokens * model.dim, 4) end
  for _ = 1, 3 do u:makes(tokens * experts, 4) end -- logits, scores, scores with the bias
  u:product(tokens, experts, model.dim)
  u:makes(tokens * top_k, 4)
  u:makes(tokens * top_k, 8)
  if model.balance > 0 then u:makes(tokens * experts, 4) end -- scores without padding
  u:makes(tokens * top_k, 4) -- weights
end

-- Each rank's counts to all ranks with tokens, and the mean scores that balancers want.
local function agreement(u)
  local model, mesh = u.context.model, u.context.mesh
  if mesh.ranks > 1 then
    u:sends('plan', 'tokens', 'once', wires.all_gather(8 * (HEAD_WORDS + model.experts), mesh.ranks))
  end
  if model.balance > 0 and mesh.dp > 1 then
    u:sends('plan', 'data', 'once', wires.all_reduce(4 * model.experts, mesh.dp))
  end
end

local function expert_weights(u)
  local model = u.context.model
  local wide = (model.activation == 'swiglu' and 2 or 1) * model.expert_hidden
  u:parameter({ model.experts, wide, model.dim }, { expert = true, cut = 2 })
  u:parameter({ model.experts, model.dim, model.expert_hidden }, { expert = true, cut = 3 })
  if model.expert_bias then
    u:parameter({ model.experts, wide }, { expert = true, cut = 2 })
    u:parameter({ model.experts, model.dim }, { expert = true })
  end
  return wide
end

-- The arrays of runtime/moe/plan_impl.h.
local function plan_bytes(tokens, top_k, rows, arrivals, experts)
  local routes = tokens * top_k
  return block(8 * tokens) + 2 * block(4 * routes) + block(routes) + 2 * block(4 * rows)
    + (arrivals > 0 and 2 * block(4 * arrivals) or 0) + 2 * block(8 * experts) + 2 * block(4 * experts) + 3 * block(8)
end

-- At how many of `places` some of a token's top_k experts are, in expectation: it chooses distinct ones at random.
local function distinct_places(experts, top_k, places)
  local none = 1 -- that a place has none of them
  for i = 0, top_k - 1 do none = none * math.max(0, experts - experts / places - i) / (experts - i) end
  return places * (1 - none)
end

--- Routing is taken to be even: every expert gets as many rows, and a capacity factor from 1 drops nothing.
local function experts(u, tokens)
  local model, mesh = u.context.model, u.context.mesh
  local dim, places = model.dim, mesh.ep * mesh.etp
  router(u, tokens)
  agreement(u)
  local wide = expert_weights(u)

  local mine = math.ceil(tokens / mesh.tp) -- tokens that this rank sends off
  local keep = model.capacity > 0 and math.min(1, model.capacity) or 1
  local rows = mine * model.top_k * keep
  local share = math.ceil(model.experts / mesh.ep) / model.experts -- of all rows, at the place with most experts
  local arrivals = rows * places * share -- each row goes to all slices of its expert
  if places > 1 then
    local once = model.exchange == 'once'
    local parcels = once and mine * keep * distinct_places(model.experts, model.top_k, mesh.ep) or rows -- without slices
    local sent, received = parcels * mesh.etp, parcels * places * share
    u:receives(math.max(received, mesh.etp > 1 and sent or 0) * dim)
    u.loose = u.loose + block(arrivals * dim * u.context.bytes)
    -- What comes back, kept for the weights' gradient: as received, or the sum of what the slices returned.
    u:saves(parcels * dim, nil, mesh.etp == 1)
    local forth, back = (sent - parcels * share) * dim * u.context.bytes, received * (1 - 1 / places) * dim * u.context.bytes
    u:sends('all-to-all', 'expert', 'forward', forth, places - 1) -- dispatch
    u:sends('all-to-all', 'expert', 'forward', back, places - 1) -- combine
    u:sends('all-to-all', 'expert', 'backward', forth, places - 1)
    u:sends('all-to-all', 'expert', 'backward', back, places - 1)
    if once then -- which rows a parcel is for; weights; their gradients
      for _, pass in ipairs { 'once', 'forward', 'backward' } do
        u:sends('all-to-all', 'expert', pass, 4 * (rows * mesh.etp - rows * share), places - 1)
      end
    end
  end
  local plan = plan_bytes(mine, model.top_k, rows, places > 1 and arrivals or 0, model.experts)
  u.exchange, u.exchange_plan = u.exchange + 2 * plan, u.exchange_plan + 2 * plan -- and last_plan, until it has this one

  u:makes(arrivals * dim)
  u:makes(arrivals * wide / mesh.etp)
  u:makes(arrivals * model.expert_hidden / mesh.etp)
  u:makes(arrivals * dim)
  local weights = math.ceil(model.experts / mesh.ep) * dim / mesh.etp
  u:product(arrivals, wide / mesh.etp, dim)
  u:product(arrivals, dim, model.expert_hidden / mesh.etp)
  u.ops[#u.ops + 1] = { flops = 0, bytes = weights * (wide + model.expert_hidden) * u.context.bytes }
  u:makes(mine * dim)
  if mesh.tp > 1 then
    u:makes(tokens * dim)
    u:sends('tp all-gather', 'tensor', 'forward', wires.all_gather(mine * dim * u.context.bytes, mesh.tp))
    u:sends('tp all-gather', 'tensor', 'backward', wires.all_gather(mine * dim * u.context.bytes, mesh.tp))
    u:sends('tp all-gather', 'tensor', 'backward', wires.all_gather(mine * model.experts * 4, mesh.tp))
  end
end

-- ---- units ---------------------------------------------------------------------------------

local function last_part(u, tokens, with_experts)
  layers.norm(u, tokens)
  if with_experts then experts(u, tokens) else feed_forward(u, tokens) end
  residual(u, tokens)
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
  reduce(u, 'forward', tokens * model.dim * u.context.bytes)
end

--- The loss, chunk by chunk with its gradients, against the embedding.
function layers.loss(u, tokens)
  local model, tp = u.context.model, u.context.mesh.tp
  local classes = math.ceil(model.vocab / tp)
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
