--- Top-k softmax router (Shazeer et al. 2017, eq. 3-5, without noise): which experts see each token.
local moe = require 'lumoe.moe'
local nn = require 'lumoe.nn'
local options = require 'lumoe.options'

---@param opts { dim: integer, top_k: integer }
---@return lumoe.Router
local function top_k(opts)
  options.check('top_k router', opts, { dim = 'number', top_k = 'number' })
  options.whole('top_k router', 'top_k', opts.top_k)
  return moe.Router {
    gate = nn.Linear { opts.dim, moe.EXPERTS, bias = false },
    top_k = opts.top_k,
    normalize = opts.top_k > 1 and 'chosen', -- a single weight divided by itself would teach nothing

    ---@param x lumoe.Tensor  [tokens, dim]
    ---@return lumoe.Choice
    route = function(self, x)
      local logits = self.gate(x:float()) -- in f32: the sum must not drift
      local scores = logits:softmax(-1)
      local _, expert_ids = (scores + self.bias):detach():topk(self.top_k)
      return { logits = logits, scores = scores, expert_ids = expert_ids }
    end,
  }
end

return top_k
