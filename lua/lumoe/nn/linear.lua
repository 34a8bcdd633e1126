--- y = x W' + b. Weights and bias start uniform in ±1/√in, as in PyTorch.
local module = require 'lumoe.nn.module'
local tensor = require 'lumoe.tensor'

---@class lumoe.nn.Linear : lumoe.Module
local Linear = module.class 'Linear'

--- `nn.Linear { in, out, bias = true, f32 = false }`; out may be a symbol such as moe.EXPERTS, and then
-- the weight stays f32. Options: init = 'uniform' (PyTorch's) | 'xavier' | 'zeros'; std for 'normal'.
function Linear:init(opts)
  tensor.options(opts, { true, true, bias = true, f32 = true, init = true, std = true }, 'nn.Linear')
  local inputs, outputs = opts[1], opts[2]
  local kind, bound = opts.init or 'uniform', 1 / math.sqrt(inputs)
  if kind == 'xavier' then kind, bound = 'uniform', math.sqrt(6 / (inputs + outputs)) end
  module.parameter(self, 'weight', { outputs, inputs },
    { init = kind, bound = bound, std = opts.std, f32 = opts.f32 or type(outputs) ~= 'number' })
  self.has_bias = opts.bias ~= false
  if self.has_bias then
    module.parameter(self, 'bias', { outputs }, { init = opts.init and 'zeros' or 'uniform', bound = bound })
  end
end

---@param x lumoe.Tensor  [..., in]
---@return lumoe.Tensor   [..., out]
function Linear:forward(x) return x:linear(self.weight, self.bias) end

return Linear
