--- Experts that are feed-forward networks: down(activation(up(x))), each with its own weights.
-- The experts of a rank are one tensor, [local experts, out, in], and they are one operation (runtime/moe/ffn.c).
-- 'swiglu' has two up-projections, gate and up, one above the other.
local dist = require 'lumoe.dist'
local module = require 'lumoe.nn.module'
local placement = require 'lumoe.dist.placement'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

---@class lumoe.moe.FFN : lumoe.Module
local FFN = module.class 'FFN'

local ACTIVATIONS = { relu = true, gelu = true, gelu_tanh = true, silu = true, swiglu = true }

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

-- The slice of the hidden size that this rank has of each of its experts: first, count.
local function slice_of(self, mesh)
  if self.hidden < mesh.etp then
    status.argument('moe.FFN: hidden %d does not spread over etp = %d ranks', self.hidden, mesh.etp)
  end
  return dist.share(self.hidden, mesh.expert.rank % mesh.etp, mesh.etp)
end

--- Called by the layer: makes this rank's share of the parameters. local_ids: ids of its experts.
-- With etp, a rank holds a slice of the hidden size: rows of up, columns of down. What it gives is then
-- a part of a sum, to which the first slice alone adds the bias; it alone holds it.
function FFN:attach(dim, mesh, local_ids)
  self.dim = dim
  local count, hidden, wide = self.count, self.hidden, self.activation == 'swiglu' and 2 or 1
  local rows, columns, output -- ranges of the hidden size (gate and up), and of the output
  self.adds_bias = mesh.expert.rank % mesh.etp == 0
  if mesh.etp > 1 then
    local first, length = slice_of(self, mesh)
    rows, columns = { { first, length } }, { { first, length } }
    if wide == 2 then rows[2] = { hidden + first, length } end
    output = self.adds_bias and { { 0, dim } } or {}
  end
  local experts = placement.runs(local_ids)
  local function parameter(name, shape, inputs, at)
    at[0] = experts
    module.parameter(self, name, shape,
      { init = 'uniform', bound = 1 / math.sqrt(inputs), group = 'expert', mesh = mesh, at = at })
  end
  parameter('up', { count, wide * hidden, dim }, dim, { [1] = rows })
  parameter('down', { count, dim, hidden }, hidden, { [2] = columns })
  if self.has_bias then
    parameter('up_bias', { count, wide * hidden }, dim, { [1] = rows })
    parameter('down_bias', { count, dim }, hidden, { [1] = output })
  end
end

FFN.takes_tokens = true -- what moe.Layer may do with these experts alone: see forward

--- With weights, where the plan is at home, x are the tokens, and what comes out is theirs.
---@param x lumoe.Tensor         [arrivals, dim], sorted by expert; or [tokens, dim]
---@param plan lumoe.Plan
---@param weights lumoe.Tensor?  [tokens, top_k]
---@param recompute boolean?     what is between the products is not kept, and computed again in backward
---@return lumoe.Tensor          as x
function FFN:forward(x, plan, weights, recompute)
  return plan:ffn(x, { up = self.up, up_bias = self.up_bias, down = self.down,
    down_bias = self.adds_bias and self.down_bias or nil, activation = self.activation, recompute = recompute }, weights)
end

return FFN
