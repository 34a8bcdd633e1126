--- PyTorch's numbers where a convention could be got wrong (tests/fixtures/torch/make.py made them).
local cjson = require 'cjson'
local lumoe = require 'lumoe'
local utils = require 'pl.utils'
local nn, optim = lumoe.nn, lumoe.optim

local CASES = cjson.decode(utils.readfile 'tests/fixtures/torch/cases.json')
local NEAR = 1e-5

local function tensor(entry, opts)
  if #entry.shape == 0 then return lumoe.full({}, entry.data[1], opts) end
  return lumoe.tensor(entry.data, opts):reshape(unpack(entry.shape))
end

local function leaf(entry)
  local t = tensor(entry)
  t.requires_grad = true
  return t
end

local function compare(want, got, what)
  assert.same(want.shape, got:shape_table(), what)
  local list, largest = got:float():reshape(-1):totable(), 1
  for _, value in ipairs(want.data) do largest = math.max(largest, math.abs(value)) end
  for i, value in ipairs(want.data) do
    assert(math.abs(value - list[i]) <= NEAR * largest,
      ('%s[%d] is %.9g, PyTorch has %.9g'):format(what, i - 1, list[i], value))
  end
end

-- How each case is called here: inputs, integers, options.
local CALLS = {
  cross_entropy = function(x, ids, o)
    return x.logits:cross_entropy(ids.targets,
      { label_smoothing = o.label_smoothing, ignore_index = o.ignore_index, reduction = o.reduction })
  end,
  layer_norm = function(x, _, o) return x.x:layer_norm(x.weight, x.bias, o.eps) end,
  rms_norm = function(x, _, o) return x.x:rms_norm(x.weight, o.eps) end,
  gelu = function(x) return x.x:gelu() end,
  gelu_tanh = function(x) return x.x:gelu_tanh() end,
  silu = function(x) return x.x:silu() end,
  cumsum = function(x, _, o) return x.x:cumsum(o.dim) end,
  topk = function(x, _, o) return (x.x:topk(o.k, o.dim)) end,
  gather = function(x, ids, o) return x.x:gather(o.dim, ids.ids) end,
  scatter_add = function(x, ids, o) return x.x:scatter_add(o.dim, ids.ids, x.src) end,
  index_select = function(x, ids, o) return x.x:index_select(o.dim, ids.ids) end,
  attention = function(x, ids, o)
    return x.q:attention(x.k, x.v, { key_mask = ids.key_mask and ids.key_mask:to 'u8', causal = o.causal })
  end,
  multihead = function(x, _, o)
    local layer = nn.MultiheadAttention { x.x:size(-1), o.heads }
    layer.query_key_value.weight, layer.query_key_value.bias = x.in_weight, x.in_bias
    layer.output.weight, layer.output.bias = x.out_weight, x.out_bias
    return layer(x.x)
  end,
}

local Holder = nn.class 'Holder'
function Holder:init(shape) nn.parameter(self, 'p', shape) end

describe('as in PyTorch', function()
  for name, case in pairs(CASES) do
    local call = CALLS[name] or CALLS[name:match '^%a+_?%a*']
    if case.output then
      it('is ' .. name, function()
        local inputs, ids = {}, {}
        for key, entry in pairs(case.inputs) do inputs[key] = leaf(entry) end
        for key, entry in pairs(case.integers) do ids[key] = tensor(entry, { dtype = 'i64' }) end
        local y = call(inputs, ids, case.options)
        compare(case.output, y, name)
        local weights = (lumoe.arange(1, y:numel() + 1):float() / y:numel()):reshape(unpack(case.output.shape));
        (y * weights):sum():backward()
        for key, entry in pairs(case.gradients) do compare(entry, inputs[key].grad, name .. ': gradient of ' .. key) end
      end)
    end
  end

  for _, name in ipairs { 'AdamW', 'SGD', 'Adafactor' } do
    it('steps ' .. name, function()
      local case = CASES[name]
      for i, what in ipairs { 'matrix', 'vector' } do
        local model = Holder(case.parameters[i].shape)
        local p = model.p
        lumoe.no_grad(function() p:copy_(tensor(case.parameters[i])) end)
        local optimizer = optim[name](model:named_parameters(), case.options)
        for step, record in ipairs(case.steps) do
          p.grad = tensor(record.gradients[i])
          optimizer:step { lr = record.lr and record.lr[i] or nil }
          optimizer:zero_grad()
          compare(record.after[i], p, ('%s: %s after step %d'):format(name, what, step))
        end
      end
    end)
  end
end)
