--- One MoE layer of ours: forward, backward, AdamW. The job: dim, hidden, experts, top_k, tokens, activation, dtype, capacity
-- (a factor, with Random Token Selection; nil: dropless), ids (routing.lua), masters (f32, of bf16), moments (AdamW's: f32 or bf16),
-- gradients (f32 or bf16), without_update (no optimizer).
local lumoe = require 'lumoe'
local fixed = require 'tests.bench.programs.fixed'
local serve = require 'tests.bench.programs.serve'
local moe, optim = lumoe.moe, lumoe.optim
local random = require 'lumoe.random'

serve(function(job)
  local layer = moe.Layer {
    dim = job.dim, router = fixed(job),
    experts = moe.FFN { experts = job.experts, hidden = job.hidden, activation = job.activation },
    capacity = job.capacity and { factor = job.capacity, select = 'random' } or nil,
  }
  layer:initialize()
  if job.dtype == 'bf16' then layer:to 'bf16' end
  layer:train()
  for _, p in ipairs(layer:named_parameters()) do p.tensor.grad_dtype = job.gradients end
  local optimizer = not job.without_update
    and optim.AdamW(layer:named_parameters(), { lr = 1e-4, masters = job.masters, moments = job.moments })
  local x = lumoe.randn({ job.tokens, job.dim }, { dtype = job.dtype })
  local gradient = lumoe.randn({ job.tokens, job.dim }, { dtype = job.dtype })
  x.requires_grad = true -- in a network the layers below want it

  local parameters, done = layer:named_parameters(), 0
  local function step(lap)
    done = done + 1
    random.step(done)
    lumoe.scope(function()
      local y = layer(x)
      lap 'forward'
      y:backward { grad = gradient, last = true }
    end)
    lap 'backward'
    if optimizer then optimizer:step() end
    x.grad = nil
    for _, p in ipairs(parameters) do p.tensor.grad = nil end
    lap 'update'
  end
  step(function() end)
  local most = 0
  for _, n in ipairs(layer.last_plan:routed()) do most = math.max(most, n) end
  return step, { parameters = layer:numel(), busiest = most }
end)
