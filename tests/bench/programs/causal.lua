--- A decoder-only Transformer in the shape of Mixtral's (Jiang et al. 2024): pre-norm with RMSNorm, rotary positions, SwiGLU
-- experts in every layer, embeddings of input and output apart.
local lumoe = require 'lumoe'
local nn, moe = lumoe.nn, lumoe.moe

local Layer = nn.class 'CausalLayer'

function Layer:init(job)
  self.norm_self, self.norm_feed_forward = nn.RMSNorm { job.dim }, nn.RMSNorm { job.dim }
  self.self_attention = nn.MultiheadAttention { job.dim, job.heads, bias = false, rope = true }
  self.feed_forward = job.experts == 1 and nn.FeedForward { job.dim, job.hidden, activation = 'swiglu', bias = false }
    or moe.Layer {
      dim = job.dim, router = moe.routers.top_k { dim = job.dim, top_k = job.top_k }, normalize = 'chosen',
      experts = moe.FFN { experts = job.experts, hidden = job.hidden, activation = 'swiglu' },
      balance = { moe.balance.load(0.01) },
    }
end

function Layer:forward(x, cache)
  x = x + self.self_attention(self.norm_self(x), { causal = true, cache = cache })
  local y, aux = self.feed_forward(self.norm_feed_forward(x))
  return x + y, aux
end

local Causal = nn.class 'Causal'

--- job: vocab, dim, heads, hidden, layers, experts (1: dense), top_k.
function Causal:init(job)
  self.embedding = nn.Embedding { job.vocab, job.dim, std = 0.02 }
  self.output = nn.Embedding { job.vocab, job.dim, std = 0.02 }
  self.norm = nn.RMSNorm { job.dim }
  self.layers = {}
  for i = 1, job.layers do self.layers[i] = Layer(job) end
end

--- ids [B, T] to [B, T, dim]; caches: a table for each layer, `{ length = 0 }` at first.
function Causal:forward(ids, caches)
  local x, total = self.embedding(ids), nil
  for i, layer in ipairs(self.layers) do
    local aux
    x, aux = layer(x, caches and caches[i])
    if aux then total = total and total + aux or aux end
  end
  return self.norm(x), total
end

--- The mean loss of targets [B, T], and the balancers'.
function Causal:loss(ids, targets)
  local x, aux = self(ids)
  return x:linear_cross_entropy(self.output.weight, targets) / targets:numel(), aux
end

return Causal
