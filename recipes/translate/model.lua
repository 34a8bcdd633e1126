--- A scaled-down Z-code M3 (Kim et al. 2021, section 4): a pre-norm encoder-decoder Transformer with
-- rotary positions, an MoE part in every second layer, and one embedding for source, target and output.
local lumoe = require 'lumoe'
local nn, moe, dist = lumoe.nn, lumoe.moe, lumoe.dist

local Translator = nn.class 'Translator'

-- Every second layer, counted so that the last one has experts.
local function has_experts(opts, i, n) return opts.experts > 1 and (n - i) % 2 == 0 end

local function experts(opts, mesh)
  local router = opts.noise > 0
      and moe.routers.noisy_top_k { dim = opts.dim, top_k = opts.top_k, scale = opts.noise }
    or moe.routers.top_k { dim = opts.dim, top_k = opts.top_k }
  return moe.Layer {
    dim = opts.dim, router = router, mesh = mesh, exchange = opts.exchange,
    experts = moe.FFN { experts = opts.experts, hidden = opts.hidden, activation = 'relu' },
    capacity = opts.capacity > 0 and { factor = opts.capacity, select = opts.select } or nil,
    balance = { moe.balance.load(opts.balance) },
    normalize = opts.top_k > 1 and 'chosen' or false, -- a lone weight of 1 would teach the router nothing
  }
end

--- opts: those of the recipe, with vocab as the tokenizer has it.
function Translator:init(opts)
  local mesh = dist.mesh { tp = opts.tp, ep = opts.ep, etp = opts.etp, offload = opts.offload,
    zero = { dense = opts.zero_dense, expert = opts.zero_expert } }
  self.opts, self.mesh = opts, mesh
  self.scale = math.sqrt(opts.dim)
  self.embedding = nn.Embedding { opts.vocab, opts.dim, std = opts.dim ^ -0.5, mesh = mesh, split = 'vocabulary' }
  self.dropout = nn.Dropout(opts.dropout)
  local function layers(class, n)
    local list = {}
    for i = 1, n do
      list[i] = class { dim = opts.dim, heads = opts.heads, hidden = opts.hidden, dropout = opts.dropout, rope = true,
        recompute = opts.recompute, mesh = mesh, feed_forward = has_experts(opts, i, n) and experts(opts, mesh) or nil }
    end
    return list
  end
  self.encoder = layers(nn.TransformerEncoderLayer, opts.encoder_layers)
  self.decoder = layers(nn.TransformerDecoderLayer, opts.decoder_layers)
  self.encoder_norm = nn.LayerNorm { opts.dim, mesh = mesh }
  self.decoder_norm = nn.LayerNorm { opts.dim, mesh = mesh }
end

local function add(total, aux)
  if aux == nil then return total end
  return total and total + aux or aux
end

--- ids [B, S] i32, tags.valid u8 [B, S].  Returns memory [B, S, dim] and the auxiliary loss, if any.
function Translator:encode(ids, tags)
  local x = self.dropout(self.embedding(ids) * self.scale, tags)
  local total, aux
  for _, layer in ipairs(self.encoder) do
    x, aux = layer(x, tags)
    total = add(total, aux)
  end
  return self.encoder_norm(x), total
end

--- ids [B, T] i32.  caches: one table a layer, for generation.  Returns [B, T, dim] and the auxiliary loss.
function Translator:decode(ids, tags, memory, memory_valid, caches)
  local x = self.dropout(self.embedding(ids) * self.scale, tags)
  local total, aux
  for i, layer in ipairs(self.decoder) do
    x, aux = layer(x, tags, memory, memory_valid, caches and caches[i])
    total = add(total, aux)
  end
  return self.decoder_norm(x), total
end

--- [.., dim] to logits over the vocabulary: the embedding again (Press & Wolf 2017).
function Translator:logits(x) return self.embedding:logits(x) end

--- The sum of the losses of a batch's targets, and the auxiliary losses of encoder and decoder, if any: means
-- over source and target pieces.
function Translator:loss(batch)
  local memory, aux_encoder = self:encode(batch.src, batch.src_tags)
  local x, aux_decoder = self:decode(batch.tgt_in, batch.tgt_tags, memory, batch.src_tags.valid)
  local nll = x:linear_cross_entropy(self.embedding.weight, batch.tgt_out,
    { ignore_index = batch.pad, label_smoothing = self.opts.label_smoothing, cut = self.embedding.cut })
  return nll, aux_encoder, aux_decoder
end

--- How many parameters there are on all ranks together, and how many of them work on a token.
function Translator:sizes()
  local all, active = 0, 0
  for _, p in ipairs(self:named_parameters()) do
    local n = 1
    for _, size in ipairs(p.spec.whole) do n = n * size end
    all = all + n
    active = active + (p.spec.group == 'expert' and n / p.module.count * self.opts.top_k or n)
  end
  return all, active
end

--- Every MoE layer with its path, in order.
function Translator:moe_layers()
  local list = {}
  for _, entry in ipairs(self:named_modules()) do
    if entry[2]._class == moe.Layer then list[#list + 1] = { path = entry[1], layer = entry[2] } end
  end
  return list
end

return Translator
