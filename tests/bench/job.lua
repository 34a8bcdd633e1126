--- The training step that benchmarks time: the sizes of the recipe's model, and batches of ids at random.
local job = {}

local SIZES = { vocab = 8000, pad = 3, dim = 192, heads = 4, hidden = 640, encoder_layers = 4, decoder_layers = 2,
  experts = 8, top_k = 2, capacity = 0, select = 'random', balance = 0.01, noise = 0, dropout = 0.1, label_smoothing = 0.1,
  tp = 1, ep = 1, etp = 1, zero_dense = 0, zero_expert = 0 }

local function batch(rows, src_len, tgt_len, random)
  local b = { rows = rows, src_len = src_len, tgt_len = tgt_len, src_lens = {}, tgt_lens = {}, tgt_tokens = 0, tokens = 0 }
  for r = 1, rows do -- the recipe sorts by length, so little is padding
    b.src_lens[r] = r == 1 and src_len or random(math.ceil(0.85 * src_len), src_len)
    b.tgt_lens[r] = r == 1 and tgt_len or random(math.ceil(0.85 * tgt_len), tgt_len)
    b.tgt_tokens = b.tgt_tokens + b.tgt_lens[r]
    b.tokens = b.tokens + b.src_lens[r] + b.tgt_lens[r]
  end
  return b
end

local BATCHES = {
  fixed = function(random) return { batch(40, 48, 48, random) } end,
  varying = function(random) -- 4096 tokens of source and target; lengths as in short help texts
    local list = {}
    for i = 1, 16 do
      local src = random(8, 64)
      local tgt = math.max(6, math.floor(src * (0.8 + 0.4 * random())))
      list[i] = batch(math.max(8, math.floor(4096 / (src + tgt) / 8) * 8), src, tgt, random)
    end
    return list
  end,
}

--- kind: 'moe' or 'dense'; batches: 'fixed' or 'varying'; more: further fields, such as threads and precision.
function job.new(kind, batches, more)
  math.randomseed(7)
  local made = {}
  for key, value in pairs(SIZES) do made[key] = value end
  if kind == 'dense' then made.experts, made.top_k = 1, 1 end
  for key, value in pairs(more) do made[key] = value end
  made.batches = BATCHES[batches](math.random)
  return made
end

return job
