--- Layer normalisation over the last dim (Ba et al. 2016).
local module = require 'lumoe.nn.module'
local tensor = require 'lumoe.tensor'

---@class lumoe.nn.LayerNorm : lumoe.Module
local LayerNorm = module.class 'LayerNorm'

--- `nn.LayerNorm { dim, eps = 1e-5 }`
function LayerNorm:init(opts)
  tensor.options(opts, { true, eps = true, mesh = true }, 'nn.LayerNorm')
  self.eps = opts.eps or 1e-5
  module.parameter(self, 'weight', { opts[1] }, { init = 'ones', mesh = opts.mesh })
  module.parameter(self, 'bias', { opts[1] }, { mesh = opts.mesh })
end

function LayerNorm:forward(x) return x:layer_norm(self.weight, self.bias, self.eps) end

--- x + dropout(h) and the norm of that, in one pass.
---@param dropout lumoe.nn.Dropout
---@return lumoe.Tensor sum, lumoe.Tensor norm
function LayerNorm:residual(h, x, dropout, tags)
  local p, high, low = dropout:draw()
  return h:dropout_add_layer_norm(x, self.weight, self.bias, self.eps, p, high, low, tags and tags.tokens)
end

return LayerNorm
