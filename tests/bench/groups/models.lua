--- Whole models, one training step: those of the recipe, and small ones in the shape of published ones, beside Hugging Face's
-- and beside our own dense model of as much work for a token.
--
-- nllb: in Transformers 5.23 the first expert computes every pair of token and expert that is no first choice; `nllb_mended` is
-- the same without that (peers/model.py).
local measures = require 'tests.bench.measures'
local sizes = require 'tests.bench.sizes'

local LINES = { -- ours, batches, peers, dense
  { 'mixtral', 'long', { 'mixtral' } }, { 'switch', 'long', { 'switch' } }, { 'nllb', 'long', { 'nllb', 'nllb_mended' } },
  { 'mixtral', 'long', { 'llama' }, true }, { 'nllb', 'long', { 'transformer' }, true },
  { 'recipe', 'fixed', { 'nllb', 'nllb_mended' } }, { 'recipe', 'fixed', { 'transformer' }, true },
  { 'recipe', 'varying', { 'nllb_mended' } }, { 'recipe', 'varying', { 'transformer' }, true },
}

local function peers_of(names, precision, quick)
  local list = {}
  for i, name in ipairs(names) do
    if not quick or i == #names then
      list[#list + 1] = { name = name, script = 'model', model = name, alone = true }
      if precision == 'f32' then
        list[#list + 1] = { name = name .. ', MKL told Intel', script = 'model', model = name, intel = true, alone = true }
      end
    end
  end
  return list
end

return {
  title = 'Whole models, one training step; tokens of source and target; memory: the most that a process had, ours over theirs',
  minutes = { quick = 2.4, full = 10 },
  run = function(b)
    for _, line in ipairs(LINES) do
      local model, batches, names, dense = unpack(line, 1, 4)
      for _, precision in ipairs { 'f32', 'bf16' } do
        local job = sizes.job(model, batches, { precision = precision, dense = dense, tiny = b.opts.tiny })
        local program = model == 'mixtral' and 'train_causal' or 'train_translator'
        local tokens = model == 'mixtral' and job.batches[1].rows * job.batches[1].src_len or sizes.tokens(job)
        local peers = peers_of(names, precision, b.opts.quick)
        if batches == 'long' and not dense then
          peers[#peers + 1] = { name = 'lumoe, dense at equal FLOPs', program = program,
            job = sizes.job(model, batches, { precision = precision, dense = true, tiny = b.opts.tiny }) }
        end
        b:compare {
          name = ('%s%s%s'):format(model, dense and ' dense' or '', model == 'recipe' and ', ' .. batches or ''), dtype = precision,
          fields = { model = model, dtype = precision, batches = batches, dense = dense or false },
          quick = not dense and batches ~= 'varying' and not (model == 'recipe' and precision == 'f32'),
          job = job, program = program, peers = peers, cycle = #job.batches,
          unit = 'tokens/s', value = measures.per_second(tokens), parts = { 'forward', 'backward', 'update', 'rss', 'tensors' },
        }
      end
    end
  end,
}
