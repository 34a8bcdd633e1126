-- Run by translation_spec.lua on some ranks: translates with an untrained model; rank 0 prints what came out,
-- what each batch of progress was, and how often each expert was asked.
--   lumoe tests/recipes/translations.lua EXPERTS EP [ETP TP]
local lumoe = require 'lumoe'
local Translator = require 'recipes.translate.model'
local translation = require 'recipes.translate.translation'
local cjson = require 'cjson'

local experts, ep, etp, tp = tonumber(arg[1]), tonumber(arg[2]), tonumber(arg[3]), tonumber(arg[4])
local corpus = { tokenizer = lumoe.text.load 'tests/fixtures/first_steps/spm-500.model', languages = { 'en', 'es' } }
lumoe.manual_seed(2)
local model = Translator {
  vocab = corpus.tokenizer.size, dim = 16, heads = 2, hidden = 24, encoder_layers = 2, decoder_layers = 2, dropout = 0,
  experts = experts, top_k = 1, capacity = 1, noise = 0, balance = 0.01, ep = ep, etp = etp, tp = tp,
  max_pieces = 64,
}
model:initialize()
lumoe.no_grad(function() -- opinions, where a fresh model has none but to say the last piece again
  model.embedding.weight:copy_(model.embedding.weight * 2)
  model.decoder_norm.weight:copy_(lumoe.randn(16) * 1.5)
end)
model:eval()

local requests = { { sentences = {}, from = 'es', to = 'en' }, { sentences = {}, from = 'en', to = 'es' } }
for line in io.lines 'tests/fixtures/bible_en_es.tsv' do
  local english, spanish = line:match '^([^\t]*)\t([^\t]*)'
  if #requests[1].sentences == 11 then break end
  table.insert(requests[1].sentences, spanish)
  if #requests[2].sentences < 4 then table.insert(requests[2].sentences, english) end
end
local steps = {}
local got = translation.run(model, corpus, requests,
  { beam = 2, batch = 3, each = function(n) steps[#steps + 1] = n end })
local used = {}
for i, moe in ipairs(model:moe_layers()) do
  local by = moe.layer:stats().by.language
  used[i] = { by[0].tokens_per_expert, by[1].tokens_per_expert }
end
if lumoe.dist.rank() == 0 then print(cjson.encode { got = got, steps = steps, used = used }) end
lumoe.dist.barrier()
