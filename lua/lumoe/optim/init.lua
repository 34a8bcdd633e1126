--- Optimizers, schedules and clipping.
--
--     local opt = optim.AdamW(model:named_parameters(), { lr = 1e-3 })
--     loss:backward()
--     opt:step { lr = schedule(step), grad_scale = optim.clip_scale(dist.grad_norm(model), 1.0) }
--     opt:zero_grad()
--
-- A bf16 parameter has an f32 master beside it, which takes the update and of which it is the rounding. With the option
-- `masters = false` it has none, which saves 4 bytes an element: it takes the update itself and is rounded up or down at
-- random, so that small steps count in the mean.
--
-- AdamW's m and v take 8 bytes an element, or 4 with `moments = 'bf16'`, for any parameters: rounded at random too, since
-- to the nearest v would stand still when beta2 = 0.999 changes it by a tenth of a percent and the next bf16 number is
-- 0.4 to 0.8 away. Bytes an element, kept of a parameter, and moved by its update with its f32 gradient:
--
--                                         kept                       moved
--     f32                                 p 4, m v 8            12     28
--     f32, moments bf16                   p 4, m v 4             8     20
--     bf16                                p 2, master 4, m v 8  14     30
--     bf16, moments bf16                  p 2, master 4, m v 4  10     22
--     bf16, masters = false               p 2, m v 8            10     24
--     the same, moments bf16              p 2, m v 4             6     16
--
-- Those moved are 2 fewer with `gradients = 'bf16'`, which is less to keep too, and less to write: the gradients of experts'
-- networks, most of a model, are then rounded to bf16 (to the nearest; tensor field `grad_dtype`), as all of PyTorch's bf16
-- models are. It holds where one backward of one rank is all of a gradient: what is added, by another backward or by
-- other ranks, is added in f32.
--
-- This v is the exact one in the mean. In a steady state it strays from it by 4 %, a step by 2 %, for beta2 = 0.999; by
-- 3 % it strays from its limit anyway, with the noise of independent normal gradients (moments_spec.lua). Rounding at
-- random: Gupta et al. 2015 (arXiv 1502.02551); of parameters updated in bf16: Zamirai et al. 2020 (arXiv 2010.06192).
local C = require 'lumoe.ffi'
local tablex = require 'pl.tablex'
local handle = require 'lumoe.handle'
local optimizer = require 'lumoe.optim.optimizer'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local optim = { schedule = require 'lumoe.optim.schedule' }
local pointer = handle.pointer

--- The factor that brings a gradient of this norm down to `max`, 1 when it is not above.
function optim.clip_scale(norm, max) return norm > max and max / norm or 1 end

--- AdamW (Loshchilov & Hutter 2019). Options: lr = 1e-3, betas = {0.9, 0.999}, eps = 1e-8,
-- weight_decay = 0.01 (on matrices alone; vectors are not decayed), masters = true, moments = 'f32' (or 'bf16': how m and
-- v are kept), gradients = 'f32' (or 'bf16').
function optim.AdamW(params, opts)
  opts = tensor.options(opts, { lr = true, betas = true, eps = true, weight_decay = true, masters = true, moments = true,
    gradients = true }, 'optim.AdamW')
  if opts.moments and opts.moments ~= 'f32' and opts.moments ~= 'bf16' then
    status.argument("optim.AdamW: moments are 'f32' or 'bf16', not '%s'", tostring(opts.moments))
  end
  local betas = opts.betas or { 0.9, 0.999 }
  local eps, decay = opts.eps or 1e-8, opts.weight_decay or 0.01
  return optimizer.new('AdamW', params, { lr = opts.lr or 1e-3, masters = opts.masters, moments = opts.moments,
    gradients = opts.gradients },
    function(p) return { m = p:shape_table(), v = p:shape_table() } end,
    function(self, part, state, master, lr, scale, p, rounding)
      return C.lm_optim_adamw(part, master, pointer(state.m), pointer(state.v), lr, betas[1], betas[2], eps,
        p.tensor:dim() > 1 and decay or 0, self.steps, scale, rounding)
    end)
end

--- Stochastic gradient descent. Options: lr = 1e-2, momentum = 0, nesterov = false, weight_decay = 0,
-- masters = true, gradients = 'f32'.
function optim.SGD(params, opts)
  opts = tensor.options(opts, { lr = true, momentum = true, nesterov = true, weight_decay = true, masters = true,
    gradients = true }, 'optim.SGD')
  local momentum, nesterov = opts.momentum or 0, opts.nesterov and 1 or 0
  return optimizer.new('SGD', params, { lr = opts.lr or 1e-2, masters = opts.masters, gradients = opts.gradients },
    function(p) return momentum > 0 and { momentum = p:shape_table() } or {} end,
    function(_, part, state, master, lr, scale, _, rounding)
      return C.lm_optim_sgd(part, master, state.momentum and pointer(state.momentum), lr, momentum,
        opts.weight_decay or 0, nesterov, scale, rounding)
    end)
end

-- Its means, and the size of its updates, are those of whole matrices: a part of one would give others.
local function check_matrices(params)
  for _, p in ipairs(type(params) == 'table' and params or {}) do
    local dims = p.tensor:dim()
    for d = math.max(dims - 2, 0), dims - 1 do
      if p.tensor:size(d) ~= p.spec.whole[d + 1] then
        status.argument("optim.Adafactor: '%s' is cut along dim %d over ranks, but its means are over all of it; AdamW and SGD take parts",
          p.name, d)
      end
    end
  end
end

--- Adafactor (Shazeer & Stern 2018): the second moment of a matrix from its rows' and columns' means.
-- Options: lr = 1e-2, beta2_power = 0.8 (beta2 = 1 - step^-power, eq. in 7.2), eps = 1e-30, clip = 1,
-- weight_decay = 0, masters = true, gradients = 'f32'. Not for parameters of which a rank holds a part of a matrix.
function optim.Adafactor(params, opts)
  opts = tensor.options(opts, { lr = true, beta2_power = true, eps = true, clip = true, weight_decay = true,
    masters = true, gradients = true }, 'optim.Adafactor')
  check_matrices(params)
  return optimizer.new('Adafactor', params, { lr = opts.lr or 1e-2, masters = opts.masters, gradients = opts.gradients },
    function(p)
      local shape = p:shape_table()
      if #shape < 2 then return { row = shape } end
      local lead = { unpack(shape, 1, #shape - 2) } -- a stack of matrices: experts
      return { row = { unpack(shape, 1, #shape - 1) }, col = tablex.insertvalues(lead, { shape[#shape] }) }
    end,
    function(self, part, state, master, lr, scale, _, rounding)
      return C.lm_optim_adafactor(part, master, pointer(state.row), state.col and pointer(state.col), lr,
        1 - self.steps ^ -(opts.beta2_power or 0.8), opts.eps or 1e-30, opts.clip or 1, opts.weight_decay or 0, scale,
        rounding)
    end, 'means of rows and columns need whole matrices')
end

return optim
