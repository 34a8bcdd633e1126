--- The router z-loss (ST-MoE, eq. 5): weight · mean over tokens of (log Σ exp logits)². Keeps logits small.
-- The router must return its `logits` beside the scores.
local options = require 'lumoe.options'
local status = require 'lumoe.status'

---@param weight number
local function z(weight)
  options.number('balance.z', 'the weight', weight)
  return function(choice, batch)
    if choice.logits == nil then
      status.argument("balance.z: router '%s' returns no logits; let route return "
        .. '{ logits = logits, scores = logits:softmax(-1), expert_ids = ... }', batch.router)
    end
    return batch:mean(choice.logits:float():logsumexp(-1):square()) * weight
  end
end

return z
