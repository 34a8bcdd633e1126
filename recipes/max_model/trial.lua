--- One size of the model under one layout: made, trained for two steps, and its memory read from the books.
local lumoe = require 'lumoe'
local Model = require 'recipes.max_model.model'
local dist, nn, optim = lumoe.dist, lumoe.nn, lumoe.optim

local trial = {}

local STEPS = 2

-- ---- what is trained -----------------------------------------------------------------------

local function model_options(opts, experts)
  return { vocab = opts.vocab, dim = opts.dim, heads = opts.heads, layers = opts.layers, hidden = opts.hidden,
    experts = experts, top_k = 1 }
end

--- The same for the planner.
function trial.description(opts, experts)
  return { vocab = opts.vocab, dim = opts.dim, heads = opts.heads, encoder_layers = opts.layers, decoder_layers = 0,
    hidden = opts.hidden, experts = experts, top_k = 1, moe_every = 1, dropout = 0, balance = 0.01 }
end

function trial.planned_mesh(layout, ranks)
  return { ranks = ranks, ep = layout.ep, tp = layout.tp, zero = layout.zero,
    offload = layout.offload and { to = layout.offload.to, bucket = layout.offload.bucket } }
end

--- Numbers that are trained, over all ranks.
function trial.size(opts, experts)
  local expert, dim = 2 * opts.dim * opts.hidden, opts.dim
  local attention, norms, gate = 4 * dim * dim + 4 * dim, 4 * dim, experts * dim
  return opts.vocab * dim + opts.layers * (attention + norms + gate + experts * expert) + 2 * dim
end

-- ---- steps ---------------------------------------------------------------------------------

-- This rank's sequences of the step's batch, which is drawn as a whole, alike on all ranks.
local function batch(opts, mesh)
  local ids = (lumoe.rand(opts.sequences * mesh.dp, opts.tokens + 1) * opts.vocab):int()
  return ids:narrow(0, mesh.data.rank * opts.sequences, opts.sequences):contiguous()
end

local function step(model, optimizer, opts, mesh, number)
  lumoe.manual_seed(number)
  lumoe.scope(function()
    local nll, aux = model:loss(batch(opts, mesh))
    local loss = nll / (opts.sequences * opts.tokens * mesh.dp) + aux
    loss:backward { last = true }
  end)
  dist.reduce_gradients(model)
  local norm = dist.grad_norm(model)
  assert(norm > 0 and norm < math.huge, 'the gradient is not finite')
  optimizer:step { lr = 1e-3, grad_scale = optim.clip_scale(norm, 1) }
  optimizer:zero_grad()
end

-- Of the sizes before: compiled traces hold on to what they were made of.
local function forget()
  jit.flush()
  collectgarbage()
  collectgarbage()
end

-- Makes the model where it belongs, without ever having it whole, and trains it.
local function train(opts, layout, experts)
  local mesh, made = dist.mesh(layout), model_options(opts, experts)
  made.mesh = mesh
  local model = dist.shard(nn.as('bf16', nn.later, Model, made), mesh)
  assert(model:whole_size() == trial.size(opts, experts), 'the model is not of the size that was counted')
  local optimizer = optim.AdamW(model:named_parameters(), {})
  for number = 1, STEPS do step(model, optimizer, opts, mesh, number) end
end

--- The most bytes that were in use at once, from making the model on, on any rank. Under a soft limit: what gives
-- way to a limit, as buckets of gradients that are under way do, does so here.
function trial.peak(opts, layout, experts)
  forget()
  local before = lumoe.memory().live.total
  lumoe.memory_limit(before + opts.limit, { soft = true })
  lumoe.reset_peak_memory()
  train(opts, layout, experts)
  local peak = lumoe.memory().peak.total - before
  lumoe.memory_limit(0, { soft = true })
  forget()
  return dist.reduce_number(peak, 'max')
end

--- Trains under the limit: more is an error.
function trial.within(opts, layout, experts)
  lumoe.memory_limit(lumoe.memory().live.total + opts.limit)
  train(opts, layout, experts)
  lumoe.memory_limit(0)
  forget()
end

return trial
