--- Greedy decoding with our decoder-only model (causal.lua) and a cache. The job: its sizes, and rows, prompt and new, the
-- tokens of each.
local lumoe = require 'lumoe'
local Causal = require 'tests.bench.programs.causal'
local serve = require 'tests.bench.programs.serve'

serve(function(job)
  local model = Causal(job)
  model:initialize()
  if job.precision == 'bf16' then model:to 'bf16' end
  model:eval()
  local prompt = (lumoe.rand(job.rows, job.prompt) * job.vocab):long()

  local function decode(lap)
    local caches, ids = {}, prompt
    for i = 1, job.layers do caches[i] = { length = 0 } end
    for _ = 1, job.new do
      local last = lumoe.scope(function()
        local x = model(ids, caches)
        local logits = model.output:logits(x:narrow(1, x:size(1) - 1, 1))
        local _, chosen = logits:float():topk(1)
        return chosen:reshape(job.rows, 1)
      end)
      if ids == prompt then lap 'prompt' end
      ids = last
    end
  end
  return function(lap) lumoe.no_grad(function() lumoe.scope(decode, lap) end) end, { parameters = model:numel() }
end)
