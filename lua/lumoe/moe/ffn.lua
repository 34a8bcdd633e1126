--- Experts that are feed-forward networks: down(activation(up(x))), each with its own weights.
-- The experts of a rank are one tensor, [local experts, out, in], and one grouped matrix product.
-- 'swiglu' has two up-projections, gate and up, one above the other.
local module = require 'lumoe.nn.module'
local placement = require 'lumoe.dist.placement'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

---@class lumoe.moe.FFN : lumoe.Module
local FFN = module.class 'FFN'

local ACTIVATIONS = { relu = 'relu', gelu = 'gelu', gelu_tanh = 'gelu_tanh', silu = 'silu', swiglu = 'swiglu' }

--- `moe.FFN { experts = 8, hidden = 2048, activation = 'relu', bias = false }`; the layer gives the dim.
function FFN:init(opts)
  tensor.options(opts, { experts = true, hidden = true, activation = true, bias = true }, 'moe.FFN')
  for _, name in ipairs { 'experts', 'hidden' } do
    local n = opts[name]
    if type(n) ~= 'number' or n < 1 or n % 1 ~= 0 then
      status.argument('moe.FFN: %s must be a whole number from 1, not %s', name, tostring(n))
    end
  end
  self.activation = opts.activation or 'relu'
  if not ACTIVATIONS[self.activation] then
    status.argument("moe.FFN: no activation '%s'; there are relu, gelu, gelu_tanh, silu, swiglu", tostring(self.activation))
  end
  self.count, self.hidden, self.has_bias = opts.experts, opts.hidden, opts.bias == true
end

--- Called by the layer: makes this rank's share of the parameters. local_ids: ids of its experts.
function FFN:attach(dim, mesh, local_ids)
  self.dim = dim
  local count, inner = self.count, self.activation == 'swiglu' and 2 * self.hidden or self.hidden
  local at = { [0] = placement.runs(local_ids) }
  local function parameter(name, shape, inputs)
    module.parameter(self, name, shape,
      { init = 'uniform', bound = 1 / math.sqrt(inputs), group = 'expert', mesh = mesh, at = at })
  end
  parameter('up', { count, inner, dim }, dim)
  parameter('down', { count, dim, self.hidden }, self.hidden)
  if self.has_bias then
    parameter('up_bias', { count, inner }, dim)
    parameter('down_bias', { count, dim }, self.hidden)
  end
end

---@param x lumoe.Tensor  [arrivals, dim], sorted by expert
---@param plan lumoe.Plan
---@return lumoe.Tensor   [arrivals, dim]
function FFN:forward(x, plan)
  local h = plan:linear(x, self.up, self.up_bias)
  return plan:linear(h[ACTIVATIONS[self.activation]](h), self.down, self.down_bias)
end

return FFN
