--- What picks the experts: any fields, and `route(self, x, tags)` that says which.
--
-- x is [tokens, dim]; every tag is [tokens, ...]. route returns
--   scores      [tokens, experts], differentiable: the layer gathers the weights from it
--   expert_ids  [tokens, top_k] i32 or i64, counted from 0; -1 leaves a slot empty
--   logits      [tokens, experts], only for balancers that want it (moe.balance.z)
-- Modules among the fields may have moe.EXPERTS as a size. self.bias, [experts] f32, is zero unless
-- a balancer moves it; added to the scores only to choose, it never enters the weights.
-- self.top_k, where there is one, is how many experts see a token: at most those that there are.
-- self.normalize is the layer's default for its option of that name.
local caller = require 'lumoe.caller'
local module = require 'lumoe.nn.module'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

---@class lumoe.Choice
---@field scores lumoe.Tensor
---@field expert_ids lumoe.Tensor
---@field logits lumoe.Tensor?

---@class lumoe.Router : lumoe.Module
local Router = module.class 'Router'

function Router:init(fields)
  if type(fields) ~= 'table' or type(fields.route) ~= 'function' then
    status.argument 'moe.Router: wants a table with a function `route(self, x, tags)`'
  end
  for key, value in pairs(fields) do self[key] = value end
end

--- Called by the layer: so many experts there are.
function Router:attach(experts)
  if type(self.top_k) == 'number' and self.top_k > experts then
    status.argument('moe.Layer: the router chooses top_k = %d of %d experts', self.top_k, experts)
  end
  self.experts = experts
  self:bind(require('lumoe.moe').EXPERTS, experts)
  module.buffer(self, 'bias', tensor.zeros(experts))
end

function Router:forward(x, tags) return self:route(x, tags) end

-- One sentence about what is wrong with a choice, or nil.
local function fault(choice, tokens, experts)
  if type(choice) ~= 'table' then return ('route returned %s, not a table'):format(type(choice)) end
  local scores, ids = choice.scores, choice.expert_ids
  if not tensor.is_tensor(scores) then return 'route returned no tensor `scores`' end
  if not tensor.is_tensor(ids) then return 'route returned no tensor `expert_ids`' end
  if scores:dim() ~= 2 or scores:size(0) ~= tokens or scores:size(1) ~= experts then
    return ('scores are %s, but there are %d tokens and %d experts'):format(tensor.describe(scores), tokens, experts)
  end
  if ids:dim() ~= 2 or ids:size(0) ~= tokens or (ids.dtype ~= 'i32' and ids.dtype ~= 'i64') then
    return ('expert_ids are %s, but should be [%d, top_k] i32 or i64'):format(tensor.describe(ids), tokens)
  end
end

--- Routes and checks. Returns the choice, or nil and a message at the line where `route` begins.
function Router:choose(x, tags)
  local choice = self:route(x, tags)
  local wrong = fault(choice, x:size(0), self.experts)
  if wrong then return nil, ("%srouter '%s': %s"):format(caller.beginning(self.route), self:path(), wrong) end
  return choice
end

return Router
