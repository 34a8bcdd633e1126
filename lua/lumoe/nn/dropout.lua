--- Dropout in training; the identity in evaluation.
local module = require 'lumoe.nn.module'
local random = require 'lumoe.random'
local status = require 'lumoe.status'

---@class lumoe.nn.Dropout : lumoe.Module
local Dropout = module.class 'Dropout'

--- `nn.Dropout(p)`
function Dropout:init(p)
  if type(p) ~= 'number' or p < 0 or p > 1 then status.argument('nn.Dropout: p must be in 0 to 1, not %s', tostring(p)) end
  self.p = p
end

--- tags.tokens, i64 ids of x's rows, makes the draws independent of padding and ranks.
---@param x lumoe.Tensor  [..., dim]
---@param tags? { tokens: lumoe.Tensor }
function Dropout:forward(x, tags)
  if not self.training or self.p == 0 then return x end
  local high, low = random.stream(self:path())
  return x:dropout(self.p, high, low, tags and tags.tokens)
end

return Dropout
