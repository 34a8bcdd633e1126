--- The importance loss (Shazeer et al. 2017, eq. 7): weight · CV²(I), I_e the scores of expert e summed
-- over the valid tokens of all ranks. CV² = variance over squared mean, so the mean score serves as well.
local options = require 'lumoe.options'

---@param weight number
local function importance(weight)
  options.number('balance.importance', 'the weight', weight)
  return function(choice, batch)
    local scores = batch:mean(choice.scores)
    local mean = scores:mean()
    return (scores - mean):square():mean() / (mean:square() + 1e-10) * weight
  end
end

return importance
