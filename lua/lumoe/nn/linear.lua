--- y = x W' + b. Weights and bias start uniform in ±1/√in, as in PyTorch.
--
-- Over the ranks of a tensor group the weight may be split (Shoeybi et al. 2019, section 3). By columns
-- (outputs): x is the same on all ranks, each gives its own outputs. By rows (inputs): each rank has its
-- own inputs, as columns gave them, and the sum over the ranks is the same on all.
local module = require 'lumoe.nn.module'
local parallel = require 'lumoe.dist.parallel'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

---@class lumoe.nn.Linear : lumoe.Module
---@field cut lumoe.Cut?  where the weight is split: the size that is cut, of one part
local Linear = module.class 'Linear'

-- The ranges of this rank in a size made of `parts` equal parts, each cut alike.
local function ranges(cut, parts)
  local list = {}
  for i = 0, parts - 1 do list[i + 1] = { i * cut.whole + cut.first, cut.count } end
  return list
end

--- `nn.Linear { in, out, bias = true, f32 = false }`; out may be a symbol such as moe.EXPERTS, and then
-- the weight stays f32. Options: init = 'uniform' (PyTorch's) | 'xavier' | 'zeros'; std for 'normal';
-- mesh, and split = 'columns' | 'rows' over its tensor group; parts = 1: the columns are so many
-- matrices side by side (queries, keys, values), of which each rank has its columns.
function Linear:init(opts)
  opts = tensor.options(opts, { true, true, bias = true, f32 = true, init = true, std = true, mesh = true, split = true,
    parts = true }, 'nn.Linear')
  local inputs, outputs, split, parts = opts[1], opts[2], opts.split, opts.parts or 1
  if type(inputs) ~= 'number' or outputs == nil then
    status.argument('nn.Linear: wants { in, out }, not { %s, %s }', tostring(inputs), tostring(outputs))
  end
  local kind, bound = opts.init or 'uniform', 1 / math.sqrt(inputs)
  if kind == 'xavier' then kind, bound = 'uniform', math.sqrt(6 / (inputs + outputs)) end
  if split ~= nil and split ~= 'columns' and split ~= 'rows' then
    status.argument("nn.Linear: split must be 'columns' or 'rows', not %s", tostring(split))
  end
  local at, bias_at
  self.split = opts.mesh and opts.mesh.tp > 1 and split or nil
  if self.split == 'columns' then
    self.cut = parallel.cut(outputs / parts, opts.mesh.tensor, 'nn.Linear: out')
    at = { [0] = ranges(self.cut, parts) }
    bias_at = at
  elseif self.split == 'rows' then
    self.cut = parallel.cut(inputs, opts.mesh.tensor, 'nn.Linear: in')
    at = { [1] = ranges(self.cut, 1) }
  end
  module.parameter(self, 'weight', { outputs, inputs }, { init = kind, bound = bound, std = opts.std, at = at,
    mesh = opts.mesh, f32 = opts.f32 or type(outputs) ~= 'number' })
  self.has_bias = opts.bias ~= false
  if self.has_bias then
    module.parameter(self, 'bias', { outputs },
      { init = opts.init and 'zeros' or 'uniform', bound = bound, at = bias_at, mesh = opts.mesh })
  end
end

---@param x lumoe.Tensor  [..., in]; this rank's inputs when split by rows
---@return lumoe.Tensor   [..., out]; this rank's outputs when split by columns
function Linear:forward(x)
  if self.split == 'columns' then return parallel.copy_to(x, self.cut.group):linear(self.weight, self.bias) end
  if self.split == 'rows' then
    local product = parallel.add_up(x:linear(self.weight), self.cut.group)
    if not self.has_bias then return product end
    local y = product + self.bias:to(product.dtype)
    product:dispose()
    return y
  end
  return x:linear(self.weight, self.bias)
end

--- relu of it; in the product's own last step, but where ranks have partial sums.
function Linear:relu(x)
  if self.split == 'rows' then return self:forward(x):relu() end
  if self.split == 'columns' then x = parallel.copy_to(x, self.cut.group) end
  return x:linear_relu(self.weight, self.bias)
end

return Linear
