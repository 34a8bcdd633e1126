--- Root-mean-square normalisation over the last dim (Zhang & Sennrich 2019).
local module = require 'lumoe.nn.module'
local tensor = require 'lumoe.tensor'

---@class lumoe.nn.RMSNorm : lumoe.Module
local RMSNorm = module.class 'RMSNorm'

--- `nn.RMSNorm { dim, eps = 1e-6 }`
function RMSNorm:init(opts)
  tensor.options(opts, { true, eps = true, mesh = true }, 'nn.RMSNorm')
  self.eps = opts.eps or 1e-6
  module.parameter(self, 'weight', { opts[1] }, { init = 'ones', mesh = opts.mesh })
end

function RMSNorm:forward(x) return x:rms_norm(self.weight, self.eps) end

--- x + dropout(h) and the norm of that, in one pass.
---@param dropout lumoe.nn.Dropout
---@return lumoe.Tensor sum, lumoe.Tensor norm
function RMSNorm:residual(h, x, dropout, tags)
  local p, high, low = dropout:draw()
  return h:dropout_add_rms_norm(x, self.weight, self.eps, p, high, low, tags and tags.tokens)
end

return RMSNorm
