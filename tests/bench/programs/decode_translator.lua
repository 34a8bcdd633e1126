--- Beam search with the recipe's translator, as recipes/translate does it. The job: its sizes, and rows, prompt (tokens of the
-- source), new (of each translation) and beam.
local lumoe = require 'lumoe'
local search = require 'recipes.translate.search'
local training = require 'recipes.translate.training'
local serve = require 'tests.bench.programs.serve'

local NEVER = -1 -- no piece: a translation ends when it is as long as it may be, and so has as many pieces as any other

serve(function(job)
  local model = training.model(job)
  model:eval()
  local src = (lumoe.rand(job.rows, job.prompt) * (job.vocab - 4) + 4):to 'i32'
  local batch = { src = src, src_tags = { valid = src:ne(job.pad) }, start = lumoe.full({ job.rows }, 2, { dtype = 'i32' }) }

  local function decode()
    local hypotheses = search.beam(model, batch, { beam = job.beam, eos = NEVER, max_len = job.new })
    for _, hypothesis in ipairs(hypotheses) do assert(#hypothesis == job.new) end
  end
  return function() lumoe.no_grad(function() lumoe.scope(decode) end) end, { parameters = model:numel() }
end)
