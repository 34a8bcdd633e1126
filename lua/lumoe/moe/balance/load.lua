--- The load-balancing loss of GShard and Switch: weight · E · Σ_e f_e P_e, 1 · weight when all is even.
-- f_e is the share of routes that chose expert e, before dropping; P_e its mean score. Both are over
-- the valid tokens of all ranks.
local options = require 'lumoe.options'

---@param weight number
local function load(weight)
  options.number('balance.load', 'the weight', weight)
  return function(choice, batch)
    return (batch:mean(choice.scores) * batch.load):sum() * (weight * batch.experts)
  end
end

return load
