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

--- p and the stream of the next draw, in two halves; 0 where nothing is drawn.
function Dropout:draw()
  if not self.training or self.p == 0 then return 0, 0, 0 end
  return self.p, random.stream(self:path())
end

--- tags.tokens, i64 ids of x's rows, makes the draws independent of padding and ranks.
---@param x lumoe.Tensor  [..., dim]
---@param tags? { tokens: lumoe.Tensor }
function Dropout:forward(x, tags)
  local p, high, low = self:draw()
  if p == 0 then return x end
  return x:dropout(p, high, low, tags and tags.tokens)
end

--- x + dropout(h), in one pass.
---@param h lumoe.Tensor  what a part of a layer gave
---@param x lumoe.Tensor  of the same shape
---@return lumoe.Tensor
function Dropout:add(h, x, tags)
  local p, high, low = self:draw()
  return h:dropout_add(x, p, high, low, tags and tags.tokens)
end

return Dropout
