--- Training steps of our decoder-only model (causal.lua): cross-entropy, clipping, AdamW.
local lumoe = require 'lumoe'
local Causal = require 'tests.bench.programs.causal'
local serve = require 'tests.bench.programs.serve'
local dist, optim = lumoe.dist, lumoe.optim
local random = require 'lumoe.random'

serve(function(job)
  local model = Causal(job)
  model:initialize()
  if job.precision == 'bf16' then model:to 'bf16' end
  model:train()
  local optimizer = optim.AdamW(model:named_parameters(), { betas = { 0.9, 0.98 }, eps = 1e-9, weight_decay = 0 })
  local shape = job.batches[1]
  local function ids() return (lumoe.rand(shape.rows, shape.src_len) * job.vocab):long() end
  local given, targets = ids(), ids()

  local done = 0
  local function step(lap)
    done = done + 1
    random.step(done)
    local value
    lumoe.scope(function()
      local loss, aux = model:loss(given, targets)
      lap 'forward'
      value = loss:item()
      loss = aux and loss + aux:float() or loss
      loss:backward { last = true }
    end)
    lap 'backward'
    optimizer:step { lr = 1e-4, grad_scale = optim.clip_scale(dist.grad_norm(model), 1) }
    optimizer:zero_grad()
    lap 'update'
    return { loss = value }
  end
  return step, { parameters = model:numel() }
end)
