--- One product of an expert layer of ours. The job: tokens, experts, top_k, ids, inputs, outputs, dtype, and form: 'y' = x w,
-- 'dx' = dy w' or 'dw' = x' dy.
local lumoe = require 'lumoe'
local nn, moe = lumoe.nn, lumoe.moe
local fixed = require 'tests.bench.programs.fixed'
local serve = require 'tests.bench.programs.serve'

-- Experts that do nothing but tell the plan and the rows that came.
local Rows = nn.class 'Rows'
function Rows:init(experts) self.count = experts end
function Rows.attach() end
function Rows:forward(x, plan)
  self.x, self.plan = lumoe.keep(x:contiguous()), plan
  return x
end

serve(function(job)
  local rows = Rows(job.experts)
  job.dim = job.inputs
  local layer = moe.Layer { dim = job.inputs, router = fixed(job), experts = rows }
  layer:initialize()
  lumoe.no_grad(function() layer(lumoe.randn({ job.tokens, job.inputs }, { dtype = job.dtype })) end)

  local x, plan = rows.x:detach(), rows.plan
  local w = lumoe.randn({ job.experts, job.outputs, job.inputs }, { dtype = job.dtype })
  local gradient = lumoe.randn({ x:size(0), job.outputs }, { dtype = job.dtype })
  x.requires_grad, w.requires_grad = job.form == 'dx', job.form == 'dw'

  local function step(lap)
    lumoe.scope(function()
      local y = plan:linear(x, w)
      if job.form ~= 'y' then
        lap 'before'
        y:backward { grad = gradient }
      end
      lap 'product'
    end)
    x.grad, w.grad = nil, nil
  end
  return step, { rows = x:size(0) }
end)
