-- Run by layouts_spec.lua: some steps of the recipe's training on real text, with all that is random on. Rank 0
-- prints their losses and norms.
--   lumoe tests/recipes/layout_steps.lua EP ETP TP
package.path = './?.lua;' .. package.path
local lumoe = require 'lumoe'
local Translator = require 'recipes.translate.model'
local training = require 'recipes.translate.training'
local cjson = require 'cjson'
local random = require 'lumoe.random'
local dist, optim = lumoe.dist, lumoe.optim
local ep, etp, tp = tonumber(arg[1]), tonumber(arg[2]), tonumber(arg[3])

local stem = os.tmpname()
local tok = lumoe.text.load 'tests/fixtures/first_steps/spm-500.model'
local streams = tok:encode_tsv('tests/fixtures/bible_en_es.tsv', { stem .. '.en', stem .. '.es' })
local batches = lumoe.data.batches.new { tokenizer = tok, languages = { 'en', 'es' }, tokens = 500, micro_batches = 2, max_pieces = 96,
  source_tags = true, tasks = {
    { source = streams[2], target = streams[1], from = 'es', to = 'en' },
    { source = streams[1], from = 'en', to = 'en', kind = 'denoising' },
  } }

lumoe.manual_seed(4)
local model = Translator { vocab = tok.size, dim = 32, heads = 4, hidden = 50, encoder_layers = 2, decoder_layers = 2,
  dropout = 0.1, experts = 6, top_k = 2, capacity = 0.9, select = 'random', noise = 1, balance = 0.02, ep = ep, etp = etp, tp = tp,
  max_pieces = 96, label_smoothing = 0.1, recompute = tp > 1 }
model:initialize()
model:train()
local optimizer = optim.AdamW(model:named_parameters(), { lr = 3e-3 })
local records = {}
for step = 1, 8 do
  random.step(step)
  local loss = training.gradients(model, batches, step, 2)
  dist.reduce_gradients(model)
  local norm = dist.grad_norm(model)
  optimizer:step { grad_scale = optim.clip_scale(norm, 1) }
  optimizer:zero_grad()
  records[step] = { step = step, loss = dist.reduce_number(loss, 'sum', model.mesh.data), grad_norm = norm }
end
for _, name in ipairs { '', '.en', '.es' } do os.remove(stem .. name) end
local all, active = model:sizes()
if dist.rank() == 0 then print(cjson.encode { records = records, all = all, active = active }) end
dist.barrier()
