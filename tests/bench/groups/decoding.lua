--- Decoding in batches with a cache, beside Hugging Face's `generate`: greedy with a decoder-only model, greedy and with 4
-- beams with an encoder-decoder. Share of the limit: the weights that the new tokens of a position need, read once a position.
local measures = require 'tests.bench.measures'
local sizes = require 'tests.bench.sizes'

local LINES = { -- ours, peers, beam
  { 'mixtral', { 'mixtral' }, 1 }, { 'nllb', { 'nllb', 'nllb_mended' }, 1 }, { 'nllb', { 'nllb', 'nllb_mended' }, 4 },
}

local function peers_of(names, precision, few)
  local list = {}
  for i, name in ipairs(names) do
    if not few or i == #names then
      list[#list + 1] = { name = name, script = 'decode', model = name, alone = name:match '^nllb' ~= nil }
      if precision == 'f32' then
        list[#list + 1] = { name = name .. ', MKL told Intel', script = 'decode', model = name, intel = true,
          alone = name:match '^nllb' ~= nil } -- a mended process stays so
      end
    end
  end
  return list
end

-- Bytes of weights that one position of `rows` tokens reads in the decoder: of its experts, those that some token goes to,
-- on average where each token's are as good as drawn. Caches, prompt and source are not counted.
local function bytes(job)
  local dim, hidden, size = job.dim, job.hidden, job.precision == 'bf16' and 2 or 4
  local matrices = job.layers and 3 or 2
  local layers, sparse = job.layers or job.decoder_layers, job.layers or job.decoder_layers / 2
  local experts = job.experts * (1 - (1 - job.top_k / job.experts) ^ (job.rows * job.beam))
  local attention = (job.layers and 4 or 4 + 2) * dim * dim
  return size * (layers * attention + (sparse * experts + layers - sparse) * matrices * dim * hidden + job.vocab * dim)
end

return {
  title = 'Decoding, new tokens of all rows a second',
  minutes = { quick = 0.7, full = 6 },
  run = function(b)
    for _, line in ipairs(LINES) do
      local model, names, beam = unpack(line)
      for _, precision in ipairs { 'f32', 'bf16' } do
        for _, rows in ipairs { 1, 16 } do
          local job = sizes.job(model, 'long', { precision = precision, rows = rows, beam = beam, prompt = b:size(32, 5),
            new = b:size(64, 3), tiny = b.opts.tiny })
          job.batches = nil
          b:compare {
            name = ('%s, %d rows, %s'):format(model, rows, beam == 1 and 'greedy' or beam .. ' beams'), dtype = precision,
            fields = { model = model, dtype = precision }, quick = rows == 16 and precision == 'bf16',
            program = model == 'mixtral' and 'decode_causal' or 'decode_translator', job = job,
            peers = peers_of(names, precision, b.opts.quick or rows == 1), unit = 'tokens/s', value = measures.per_second(rows * job.new),
            limit = function(own, limits) return bytes(job) * job.new / (limits.read * 1e9) / (own.ms / 1e3) end,
          }
        end
      end
    end
  end,
}
