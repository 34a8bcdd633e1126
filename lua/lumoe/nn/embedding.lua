--- Rows of a table by id.
local module = require 'lumoe.nn.module'
local tensor = require 'lumoe.tensor'

---@class lumoe.nn.Embedding : lumoe.Module
local Embedding = module.class 'Embedding'

--- `nn.Embedding { count, dim, std = 1 }`
function Embedding:init(opts)
  tensor.options(opts, { true, true, std = true, f32 = true }, 'nn.Embedding')
  module.parameter(self, 'weight', { opts[1], opts[2] }, { init = 'normal', std = opts.std or 1,
    f32 = opts.f32 or type(opts[2]) ~= 'number' })
end

---@param ids lumoe.Tensor  [...] i32 or i64, in 0 to count - 1
---@return lumoe.Tensor     [..., dim]
function Embedding:forward(ids) return self.weight:embedding(ids) end

return Embedding
