--- The model that is made as large as memory allows: a causal language model of Transformer layers, each with
-- its experts, one embedding for input and output (the single stack of lumoe.estimate).
local lumoe = require 'lumoe'
local nn, moe = lumoe.nn, lumoe.moe

local Model = nn.class 'MaxModel'

--- opts: vocab, dim, heads, layers, hidden, experts, top_k; mesh.
function Model:init(opts)
  self.vocab, self.scale = opts.vocab, math.sqrt(opts.dim)
  self.embedding = nn.Embedding { opts.vocab, opts.dim, std = opts.dim ^ -0.5, mesh = opts.mesh, split = 'vocabulary' }
  self.layers = {}
  for i = 1, opts.layers do
    self.layers[i] = nn.TransformerEncoderLayer {
      dim = opts.dim, heads = opts.heads, rope = true, mesh = opts.mesh,
      feed_forward = moe.Layer {
        dim = opts.dim, mesh = opts.mesh,
        experts = moe.FFN { experts = opts.experts, hidden = opts.hidden, activation = 'relu' },
        router = moe.routers.top_k { dim = opts.dim, top_k = opts.top_k },
        balance = { moe.balance.load(0.01) },
      },
    }
  end
  self.norm = nn.LayerNorm { opts.dim, mesh = opts.mesh }
end

--- The sum of the losses of ids' positions but the last, each predicting the next, and the balancers' loss.
---@param ids lumoe.Tensor  [batch, time] i32
---@return lumoe.Tensor nll, lumoe.Tensor aux
function Model:loss(ids)
  local time = ids:size(1)
  local x, total = self.embedding(ids:narrow(1, 0, time - 1)) * self.scale, nil
  for _, layer in ipairs(self.layers) do
    local aux
    x, aux = layer(x)
    total = total and total + aux or aux
  end
  local nll = self.norm(x):linear_cross_entropy(self.embedding.weight, ids:narrow(1, 1, time - 1):contiguous(),
    { cut = self.embedding.cut })
  return nll, total
end

--- Numbers that are trained, over all ranks.
function Model:whole_size()
  local total = 0
  for _, p in ipairs(self:named_parameters()) do
    local n = 1
    for _, size in ipairs(p.spec.whole) do n = n * size end
    total = total + n
  end
  return total
end

return Model
