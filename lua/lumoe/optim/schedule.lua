--- Learning rates as functions of the step (from 1): a warm-up from 0, then a shape.
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local SHAPES = {
  constant = function() return 1 end,
  -- Vaswani et al. 2017, eq. 3, with the peak at the end of the warm-up
  inverse_sqrt = function(step, warmup) return math.sqrt(math.max(warmup, 1) / step) end,
  linear = function(step, warmup, steps) return math.max(0, (steps - step) / math.max(steps - warmup, 1)) end,
  -- Loshchilov & Hutter 2017, eq. 5, one cycle
  cosine = function(step, warmup, steps)
    return 0.5 * (1 + math.cos(math.pi * math.min(1, (step - warmup) / math.max(steps - warmup, 1))))
  end,
}

--- `schedule { 'inverse_sqrt', lr =, warmup = 0, steps = (linear and cosine), floor = 0 }` gives lr(step).
-- floor: the share of lr that the shape falls to instead of 0.
return function(opts)
  tensor.options(opts, { true, lr = true, warmup = true, steps = true, floor = true }, 'optim.schedule')
  local shape = SHAPES[opts[1]]
  if not shape then
    status.argument("optim.schedule: no shape '%s'; there are constant cosine inverse_sqrt linear", tostring(opts[1]))
  end
  if type(opts.lr) ~= 'number' then status.argument "optim.schedule: option 'lr' is missing" end
  if (opts[1] == 'linear' or opts[1] == 'cosine') and not opts.steps then
    status.argument('optim.schedule: %s needs steps', opts[1])
  end
  local lr, warmup, floor = opts.lr, opts.warmup or 0, opts.floor or 0
  return function(step)
    if step <= warmup then return lr * step / warmup end
    return lr * (floor + (1 - floor) * shape(step, warmup, opts.steps))
  end
end
