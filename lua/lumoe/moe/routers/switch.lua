--- Switch router (Fedus et al. 2021): one expert per token, weighted by its probability as it is.
-- In training the input is multiplied by uniform noise in [1 - jitter, 1 + jitter].
local lumoe = require 'lumoe'
local moe = require 'lumoe.moe'
local nn = require 'lumoe.nn'
local options = require 'lumoe.options'

---@param opts { dim: integer, jitter?: number }  jitter = 0.01
---@return lumoe.Router
local function switch(opts)
  options.check('switch router', opts, { dim = 'number', jitter = 'number?' })
  return moe.Router {
    gate = nn.Linear { opts.dim, moe.EXPERTS, bias = false },
    jitter = opts.jitter or 0.01,
    normalize = false,

    route = function(self, x, tags)
      x = x:float()
      if self.training and self.jitter > 0 then
        local draws = lumoe.rand(x:size(0), x:size(1), { site = self:path(), rows = tags.tokens })
        x = x * (draws * (2 * self.jitter) + (1 - self.jitter))
      end
      local logits = self.gate(x)
      local scores = logits:softmax(-1)
      local _, expert_ids = (scores + self.bias):detach():topk(1)
      return { logits = logits, scores = scores, expert_ids = expert_ids }
    end,
  }
end

return switch
