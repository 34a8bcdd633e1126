--- The models that benchmarks train and decode with, and their batches of ids at random.
local sizes = {}

-- What programs/train_translator.lua takes besides: the options of the recipe.
local RECIPE = { pad = 3, capacity = 0, select = 'random', balance = 0.01, noise = 0, dropout = 0.1, label_smoothing = 0.1,
  tp = 1, ep = 1, etp = 1, zero_dense = 0, zero_expert = 0 }

local MODELS = {
  -- the recipe's
  recipe = { vocab = 8000, dim = 192, heads = 4, hidden = 640, encoder_layers = 4, decoder_layers = 2, experts = 8, top_k = 2 },
  -- small ones in the shape of published ones
  nllb = { vocab = 8192, dim = 256, heads = 8, hidden = 1024, encoder_layers = 4, decoder_layers = 4, experts = 8, top_k = 2 },
  switch = { vocab = 8192, dim = 256, heads = 8, hidden = 1024, encoder_layers = 4, decoder_layers = 4, experts = 8, top_k = 1,
    capacity = 1.25, select = 'position' },
  mixtral = { vocab = 8192, dim = 256, heads = 8, hidden = 1024, layers = 6, experts = 8, top_k = 2 },
}

-- Of a test.
local TINY = { vocab = 64, dim = 16, heads = 2, hidden = 32, experts = 4 }

local function batch(rows, src_len, tgt_len, random, shortest)
  local b = { rows = rows, src_len = src_len, tgt_len = tgt_len, src_lens = {}, tgt_lens = {}, tgt_tokens = 0, tokens = 0 }
  for r = 1, rows do
    b.src_lens[r] = r == 1 and src_len or random(math.ceil(shortest * src_len), src_len)
    b.tgt_lens[r] = r == 1 and tgt_len or random(math.ceil(shortest * tgt_len), tgt_len)
    b.tgt_tokens = b.tgt_tokens + b.tgt_lens[r]
    b.tokens = b.tokens + b.src_lens[r] + b.tgt_lens[r]
  end
  return b
end

local BATCHES = {
  fixed = function(random) return { batch(40, 48, 48, random, 0.85) } end, -- the recipe sorts by length, so little is padding
  varying = function(random) -- 4096 tokens of source and target; lengths as in short help texts
    local list = {}
    for i = 1, 16 do
      local src = random(8, 64)
      local tgt = math.max(6, math.floor(src * (0.8 + 0.4 * random())))
      list[i] = batch(math.max(8, math.floor(4096 / (src + tgt) / 8) * 8), src, tgt, random, 0.85)
    end
    return list
  end,
  long = function(random) return { batch(8, 256, 256, random, 1) } end,
  tiny = function(random) return { batch(4, 6, 5, random, 0.5), batch(2, 3, 4, random, 0.5) } end,
}

--- A job. model: one of the above; batches: 'fixed' or 'varying' (the recipe's), or 'long', 8 × 256 without padding; more:
-- further fields, such as precision. dense = true: without experts, and as much work for a token; tiny = true: as the
-- model, but of a test's size.
function sizes.job(model, batches, more)
  math.randomseed(7)
  local made = {}
  for _, fields in ipairs { RECIPE, MODELS[model], more or {} } do
    for key, value in pairs(fields) do made[key] = value end
  end
  if made.tiny then
    for key, value in pairs(TINY) do made[key] = value end
    batches = 'tiny'
  end
  if made.dense then made.hidden, made.experts, made.top_k, made.capacity = made.hidden * made.top_k, 1, 1, 0 end
  made.batches = BATCHES[batches](math.random)
  return made
end

--- Tokens of a step, on average: of the source and of the target, without padding.
function sizes.tokens(job)
  local tokens = 0
  for _, b in ipairs(job.batches) do tokens = tokens + b.tokens / #job.batches end
  return tokens
end

return sizes
