--- A small language model with all that layouts can break: attention, tied embedding and loss, dense and MoE
-- feed-forward parts in turn, dropout, router noise, capacity, balancing losses.
local lumoe = require 'lumoe'
local nn, moe = lumoe.nn, lumoe.moe

local LanguageModel = nn.class 'LanguageModel'

local function router(opts)
  if opts.noise > 0 then return moe.routers.noisy_top_k { dim = opts.dim, top_k = opts.top_k, scale = opts.noise } end
  return moe.routers.top_k { dim = opts.dim, top_k = opts.top_k }
end

-- Two levels are tried as if every two ranks were a host.
local function exchange(name, mesh)
  if name == 'parts' then return { once = true, parts = 3 } end
  if name == 'shadow' then return { shadow = mesh.etp == 1 and 1.2 or nil } end -- not of slices
  if name ~= 'two_level' then return name end
  local hosts = {}
  for r = 0, mesh.expert.size - 1 do hosts[r + 1] = math.floor(r / 2) end
  return { way = 'two_level', once = true, hosts = hosts }
end

local function experts(opts, mesh, layout)
  return moe.Layer {
    dim = opts.dim, router = router(opts), mesh = mesh, normalize = opts.top_k > 1 and 'chosen' or false,
    experts = moe.FFN { experts = opts.experts, hidden = opts.hidden, activation = 'swiglu', bias = true },
    capacity = opts.capacity > 0 and { factor = opts.capacity, select = opts.select } or nil,
    balance = { moe.balance.load(0.01), moe.balance.z(0.001) }, exchange = exchange(layout.exchange, mesh),
  }
end

--- opts: those of recipes/check_layouts.lua; layout: lumoe.Layout.
function LanguageModel:init(opts, mesh, layout)
  self.opts = opts
  self.embedding = nn.Embedding { opts.vocab, opts.dim, std = opts.dim ^ -0.5, mesh = mesh, split = 'vocabulary' }
  self.layers = {}
  for i = 1, opts.layers do
    self.layers[i] = nn.TransformerEncoderLayer { dim = opts.dim, heads = opts.heads, hidden = opts.hidden, mesh = mesh,
      activation = 'gelu', dropout = opts.dropout, rope = true, recompute = layout.recompute or opts.recompute,
      feed_forward = opts.experts > 1 and (opts.layers - i) % 2 == 0 and experts(opts, mesh, layout) or nil }
  end
  self.norm = nn.LayerNorm { opts.dim, mesh = mesh }
end

--- Every token to expert 0, by a bias that no score outweighs.
function LanguageModel:prefer_first_expert()
  for _, layer in ipairs(self.layers) do
    if layer.feed_forward.router then layer.feed_forward.router.bias[0] = 100 end
  end
end

-- How many targets count in the rows of a batch.
local function targets(batch) return batch.tags.valid:float():sum():item() end

--- This rank's part of a step's loss (DESIGN.md, "One rule for scale"): `part` of `micro` of `whole`.
function LanguageModel:loss(part, micro, whole)
  local x, aux = self.embedding(part.ids) * math.sqrt(self.opts.dim), nil
  for _, layer in ipairs(self.layers) do
    local loss
    x, loss = layer(x, part.tags)
    if loss then aux = aux and aux + loss or loss end
  end
  local total = targets(whole)
  local nll = self.norm(x):linear_cross_entropy(self.embedding.weight, part.targets, { ignore_index = -1, cut = self.embedding.cut })
  local loss = nll / total
  return aux and loss + aux * (targets(micro) / total) or loss
end

--- A batch of random ids, sequences of different lengths; a token's id is (sequence, position), whoever holds it.
-- Called at the start of a step, whose draws it is made of.
function LanguageModel.batch(opts)
  local draws = lumoe.rand(opts.batch, opts.time + 1, { site = 'check_layouts.batch' })
  local ids, targets_of, valid, tokens = {}, {}, {}, {}
  for b = 1, opts.batch do
    ids[b], targets_of[b], valid[b], tokens[b] = {}, {}, {}, {}
    local row = draws[b - 1]:totable()
    local length = math.max(1, opts.time - (b * 5) % math.max(1, math.floor(opts.time / 2)))
    for t = 1, opts.time do
      ids[b][t] = math.floor(row[t] * opts.vocab)
      valid[b][t] = t <= length and 1 or 0
      targets_of[b][t] = t <= length and math.floor(row[t + 1] * opts.vocab) or -1
      tokens[b][t] = (b - 1) * 2 ^ 32 + t - 1
    end
  end
  return { ids = lumoe.tensor(ids, { dtype = 'i32' }), targets = lumoe.tensor(targets_of, { dtype = 'i32' }),
    tags = { valid = lumoe.tensor(valid, { dtype = 'u8' }), tokens = lumoe.tensor(tokens, { dtype = 'i64' }) } }
end

--- How a batch's rows are dealt out (`share` of dist.check_layouts) where the first of several ranks gets none.
function LanguageModel.idle_first(count, rank, ranks)
  if ranks == 1 then return 0, count end
  if rank == 0 then return 0, 0 end
  return lumoe.dist.share(count, rank - 1, ranks - 1)
end

return LanguageModel
