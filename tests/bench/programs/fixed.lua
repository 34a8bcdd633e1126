--- A top-k router whose choice is the job's (routing.lua): it computes its scores, and chooses, as any other.
local ffi = require 'ffi'
local lumoe = require 'lumoe'
local nn, moe = lumoe.nn, lumoe.moe

--- [tokens, experts]: 10 for the experts that are chosen.
local function preference(job)
  local values = ffi.new('float[?]', job.tokens * job.experts)
  for i, expert in ipairs(job.ids) do
    values[math.floor((i - 1) / job.top_k) * job.experts + expert] = 10
  end
  return lumoe.from(values, { job.tokens, job.experts })
end

return function(job)
  local preferred = preference(job)
  return moe.Router {
    gate = nn.Linear { job.dim, moe.EXPERTS, bias = false },
    normalize = 'chosen',
    route = function(self, x)
      local logits = self.gate(x:float()) + preferred
      local scores = logits:softmax(-1)
      local _, expert_ids = scores:detach():topk(job.top_k)
      return { logits = logits, scores = scores, expert_ids = expert_ids }
    end,
  }
end
