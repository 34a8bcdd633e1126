--- The global micro-batch as a balancer sees it.
--
-- Every rank computes the same loss of means over all ranks' tokens. Gradients are summed over ranks
-- later, so each rank must only differentiate its own tokens' share: `mean` has the value of the global
-- mean and the gradient of the local part. `part` then scales the value, not the gradient, so that the
-- ranks' losses add up to the one loss.
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local dist = require 'lumoe.dist'
local recompute = require 'lumoe.nn.recompute'
local tensor = require 'lumoe.tensor'

---@class lumoe.moe.Batch
---@field router string     the router's path
---@field experts integer
---@field top_k integer
---@field tokens number     valid tokens of all ranks
---@field tokens_per_expert lumoe.Tensor  [experts] f32: routed, before dropping, over all ranks
---@field load lumoe.Tensor  [experts] f32: the same as shares, summing to 1
---@field plan lumoe.Plan
---@field repeating boolean  the layer is computed again for backward: a balancer that keeps something has kept it
local Batch = {}
Batch.__index = Batch

---@param plan lumoe.Plan
---@param valid lumoe.Tensor?  [tokens] u8 of this rank; nil: all are
local function batch(plan, valid, router)
  local routed, total = C.lm_plan_routed(plan.pointer), 0
  for e = 0, plan.experts - 1 do total = total + tonumber(routed[e]) end
  local per_expert = tensor.from(routed, { plan.experts }, { dtype = 'i64' }):float()
  return setmetatable({ router = router, experts = plan.experts, top_k = plan.top_k, plan = plan,
    tokens = plan.valid_tokens, valid = valid, tokens_per_expert = per_expert,
    load = per_expert / math.max(total, 1) }, Batch)
end

-- What the other ranks' tokens add to a sum, as a number that nobody differentiates.
local function of_others(own, group)
  own = own:detach()
  return dist.all_reduce(own:clone(), 'sum', group) - own
end

--- The mean over the valid tokens of all ranks of x, [tokens] or [tokens, n]: a scalar, or [n].
---@param x lumoe.Tensor
---@return lumoe.Tensor
function Batch:mean(x)
  x = x:float()
  if self.valid ~= nil then
    local invalid = self.valid:eq(0)
    x = x:masked_fill(x:dim() == 2 and invalid:unsqueeze(1) or invalid, 0) -- padding may hold anything, NaN too
  end
  local own = x:sum(0) / math.max(self.tokens, 1)
  if self.plan.mesh.data.size == 1 then return own end
  return own + recompute.once('mean', autograd.no_grad, of_others, own, self.plan.mesh.data)
end

--- This rank's part of a loss that all ranks have computed alike.
function Batch:part(loss)
  if self.plan.mesh.data.size == 1 then return loss end
  return loss - loss:detach() * (1 - 1 / self.plan.mesh.data.size)
end

return batch
