--- Noisy top-k router (Shazeer et al. 2017, eq. 4): in training each logit gets normal noise whose
-- deviation is learnt, softplus(x W_noise), so that experts near the threshold are tried too.
local lumoe = require 'lumoe'
local moe = require 'lumoe.moe'
local nn = require 'lumoe.nn'
local options = require 'lumoe.options'

-- log(1 + exp(x)), without overflow
local function softplus(x) return x:clamp(0) + ((-x:abs()):exp() + 1):log() end

--- scale multiplies the noise: 0 is the top-k router with another normalisation.
---@param opts { dim: integer, top_k: integer, scale?: number }
---@return lumoe.Router
local function noisy_top_k(opts)
  options.check('noisy_top_k router', opts, { dim = 'number', top_k = 'number', scale = 'number?' })
  options.whole('noisy_top_k router', 'top_k', opts.top_k)
  return moe.Router {
    gate = nn.Linear { opts.dim, moe.EXPERTS, bias = false },
    noise = nn.Linear { opts.dim, moe.EXPERTS, bias = false },
    top_k = opts.top_k,
    scale = opts.scale or 1,
    normalize = 'chosen', -- eq. 3: the softmax is over the chosen ones

    route = function(self, x, tags)
      x = x:float()
      local logits = self.gate(x)
      local noisy = logits
      if self.training then
        local draws = lumoe.randn(x:size(0), self.experts, { site = self:path(), rows = tags.tokens })
        noisy = logits + draws * softplus(self.noise(x)) * self.scale
      end
      local scores = noisy:softmax(-1)
      local _, expert_ids = (scores + self.bias):detach():topk(self.top_k)
      return { logits = logits, scores = scores, expert_ids = expert_ids }
    end,
  }
end

return noisy_top_k
