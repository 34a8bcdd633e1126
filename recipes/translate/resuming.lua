--- What a run may change when it goes on, and what not: what decides a step stays, so that the run is the run that it
-- would have been unbroken. Where and how it is computed (ranks, layout, offload, precision), how long, what is written
-- and how it is evaluated may change.
local lumoe = require 'lumoe'

local resuming = {}

-- Named as in `opts`; an option `--top-k` is opts.top_k.
local STAY = {
  'langs', 'directions', 'denoising', 'temperature', 'vocab', 'max_pieces',
  'dim', 'heads', 'hidden', 'encoder_layers', 'decoder_layers', 'experts', 'top_k', 'capacity', 'select', 'balance', 'noise',
  'dropout',
  'batch', 'micro_batches', 'lr', 'schedule', 'warmup', 'label_smoothing', 'clip', 'seed',
}

local function words(value) return type(value) == 'table' and table.concat(value, ',') or tostring(value) end

local function same(a, b)
  if type(a) == 'number' and type(b) == 'number' then return math.abs(a - b) <= 1e-9 * math.abs(a) end
  return words(a) == words(b)
end

--- The pieces of each language's training text, by which other data is known.
function resuming.sizes(data)
  local sizes = {}
  for lang, pair in pairs(data.streams) do sizes[lang] = pair[1].tokens + pair[2].tokens end
  return sizes
end

--- Refuses what would be another run than the one whose checkpoint is `at`, with `extra` beside it. What an older
-- checkpoint does not say is not compared.
function resuming.check(opts, data, extra, at)
  for _, name in ipairs(STAY) do
    local before, now = extra.opts[name], opts[name]
    if before ~= nil and not same(before, now) then
      lumoe.refuse('--resume: %s was trained with --%s %s, and now it is %s; go on with that, or name another --out', at,
        name:gsub('_', '-'), words(before), words(now))
    end
  end
  local sizes = resuming.sizes(data)
  for lang, before in pairs(extra.data or {}) do
    if sizes[lang] ~= before then
      lumoe.refuse('--resume: %s was trained on other data: the %s texts in %s had %.0f pieces, and now it is %.0f', at, lang,
        data.dir, before, sizes[lang] or 0)
    end
  end
end

return resuming
