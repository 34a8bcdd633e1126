--- Products of an expert layer of ours. The job: tokens, experts, top_k, ids, inputs, outputs, dtype, and form: 'y' = x w,
-- 'dx' = dy w' or 'dw' = x' dy; or 'all', those of both matrices of SwiGLU experts as one operation, forward and backward: inputs
-- are its dim, outputs its hidden size.
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
  local function step_of(parameters, f, gradient)
    return function(lap)
      lumoe.scope(function()
        local y = f()
        if job.form ~= 'all' and job.form ~= 'y' then lap 'before' end
        if job.form ~= 'y' then y:backward { grad = gradient } end
        lap 'product'
      end)
      for _, p in ipairs(parameters) do p.grad = nil end
    end, { rows = x:size(0) }
  end
  local function random(...) return lumoe.randn({ ... }, { dtype = job.dtype }) end
  if job.form == 'all' then
    local up, down = random(job.experts, 2 * job.outputs, job.inputs), random(job.experts, job.inputs, job.outputs)
    x.requires_grad, up.requires_grad, down.requires_grad = true, true, true
    return step_of({ x, up, down }, function() return plan:ffn(x, { up = up, down = down, activation = 'swiglu' }) end,
      random(x:size(0), job.inputs))
  end
  local w = random(job.experts, job.outputs, job.inputs)
  x.requires_grad, w.requires_grad = job.form == 'dx', job.form == 'dw'
  return step_of({ x, w }, function() return plan:linear(x, w) end, random(x:size(0), job.outputs))
end)
