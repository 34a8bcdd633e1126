local lumoe = require 'lumoe'
local naive = require 'tests.lua.nn.naive'
local nn = lumoe.nn
local numbers, near = naive.numbers, naive.near

local function rows(x, f)
  local y = {}
  for i, row in ipairs(numbers(x)) do y[i] = f(row) end
  return y
end

describe('nn', function()
  before_each(function() lumoe.manual_seed(3) end)

  it('Linear: x W\' + b, over any leading sizes', function()
    local linear = nn.Linear { 5, 3 }
    local x = lumoe.randn(2, 4, 5)
    local w, b = numbers(linear.weight), numbers(linear.bias)
    near(rows(x:reshape(8, 5), function(row) return naive.linear(row, w, b) end), numbers(linear(x):reshape(8, 3)), 1e-6)
    assert.same({ 2, 4, 3 }, linear(x):shape_table())
  end)

  it('Linear without a bias has none', function()
    local linear = nn.Linear { 5, 3, bias = false }
    assert.is_nil(linear.bias)
    assert.equal(1, #linear:named_parameters())
    local x = lumoe.randn(2, 5)
    near(rows(x, function(row) return naive.linear(row, numbers(linear.weight)) end), numbers(linear(x)), 1e-6)
  end)

  it('Linear starts uniform in ±1/√in, or as Xavier says', function()
    for _, case in ipairs { { {}, 1 / math.sqrt(300) }, { { init = 'xavier' }, math.sqrt(6 / 500) } } do
      local linear = nn.Linear { 300, 200, init = case[1].init }
      local w = linear.weight:detach()
      assert.is_true(w:abs():max():item() <= case[2])
      assert.is_true(w:abs():max():item() > 0.99 * case[2])
      assert.near(0, w:mean():item(), case[2] / 50)
      assert.near(case[2] ^ 2 / 3, w:square():mean():item(), case[2] ^ 2 / 100)
    end
    assert.equal(0, nn.Linear({ 3, 2, init = 'xavier' }).bias:abs():max():item())
  end)

  it('Embedding gives rows by id and their gradients back', function()
    local embedding = nn.Embedding { 7, 3, std = 0.5 }
    local table_of = numbers(embedding.weight)
    local y = embedding(lumoe.tensor({ { 6, 0 }, { 6, 2 } }, { dtype = 'i32' }))
    near({ { table_of[7], table_of[1] }, { table_of[7], table_of[3] } }, numbers(y), 0)
    y:sum():backward()
    near({ { 1, 1, 1 }, { 0, 0, 0 }, { 1, 1, 1 }, { 0, 0, 0 }, { 0, 0, 0 }, { 0, 0, 0 }, { 2, 2, 2 } },
      numbers(embedding.weight.grad), 0)
    local wide = nn.Embedding { 400, 100, std = 0.5 }
    assert.near(0.25, wide.weight:detach():square():mean():item(), 0.01)
  end)

  it('LayerNorm and RMSNorm', function()
    local layer, rms = nn.LayerNorm { 6, eps = 1e-3 }, nn.RMSNorm { 6, eps = 1e-3 }
    lumoe.no_grad(function()
      layer.weight:copy_(lumoe.randn(6))
      layer.bias:copy_(lumoe.randn(6))
      rms.weight:copy_(lumoe.randn(6))
    end)
    local x = lumoe.randn(5, 6) * 3 + 1
    local w, b, r = numbers(layer.weight), numbers(layer.bias), numbers(rms.weight)
    near(rows(x, function(row) return naive.layer_norm(row, w, b, 1e-3) end), numbers(layer(x)), 1e-5)
    near(rows(x, function(row) return naive.rms_norm(row, r, 1e-3) end), numbers(rms(x)), 1e-5)
  end)

  for _, activation in ipairs { 'relu', 'gelu', 'gelu_tanh', 'silu', 'swiglu' } do
    it('FeedForward with ' .. activation, function()
      local ff = nn.FeedForward { 4, 6, activation = activation }
      lumoe.no_grad(function()
        ff.up.bias:copy_(lumoe.randn(activation == 'swiglu' and 12 or 6))
        ff.down.bias:copy_(lumoe.randn(4))
      end)
      local p = { up = numbers(ff.up.weight), up_bias = numbers(ff.up.bias), down = numbers(ff.down.weight),
        down_bias = numbers(ff.down.bias) }
      local x = lumoe.randn(5, 4)
      near(rows(x, function(row) return naive.feed_forward(row, p, activation) end), numbers(ff(x)), 2e-6)
    end)
  end

  it('Dropout keeps the mean in training and everything in evaluation', function()
    local dropout = nn.Dropout(0.25):named_paths()
    local x = lumoe.ones(200, 100)
    local y = dropout(x)
    assert.near(1, y:mean():item(), 0.02)
    local kept = y:gt(0):float():mean():item()
    assert.near(0.75, kept, 0.01)
    assert.near(1 / 0.75, y:max():item(), 1e-6)
    dropout:eval()
    assert.equal(1, dropout(x):min():item())
    assert.equal(x:id(), nn.Dropout(0)(x):id())
  end)

  it('Dropout\'s draws follow a token\'s number, not its row', function()
    local dropout = nn.Dropout(0.5)
    local ids = lumoe.tensor({ { 10, 11, 12 }, { 20, 21, 22 } }, { dtype = 'i64' })
    local turned = lumoe.tensor({ { 22, 10 }, { 11, 20 } }, { dtype = 'i64' })
    local function draws(tokens)
      require('lumoe.random').step(5)
      local shape = tokens:shape_table()
      return numbers(dropout(lumoe.ones(shape[1], shape[2], 64), { tokens = tokens }))
    end
    local a, b = draws(ids), draws(turned)
    near(a[2][3], b[1][1], 0)
    near(a[1][1], b[1][2], 0)
    near(a[1][2], b[2][1], 0)
    near(a[2][1], b[2][2], 0)
    assert.is_false(pcall(near, a[1][1], a[1][2], 0))
  end)

  it('Dropout draws anew at every call and step', function()
    local dropout, random = nn.Dropout(0.5), require 'lumoe.random'
    local x = lumoe.ones(4, 64)
    random.step(1)
    local first, second = numbers(dropout(x)), numbers(dropout(x))
    random.step(2)
    local other = numbers(dropout(x))
    random.step(1)
    near(first, numbers(dropout(x)), 0)
    assert.is_false(pcall(near, first, second, 0))
    assert.is_false(pcall(near, first, other, 0))
  end)

  it('cross_entropy is the tensor\'s', function()
    local logits = lumoe.randn(3, 5)
    local target = lumoe.tensor({ 4, 0, 2 }, { dtype = 'i32' })
    local sum = 0
    for i, row in ipairs(numbers(logits)) do
      local total = 0
      for _, v in ipairs(row) do total = total + math.exp(v) end
      sum = sum + math.log(total) - row[({ 5, 1, 3 })[i]]
    end
    assert.near(sum / 3, nn.cross_entropy(logits, target):item(), 1e-5)
    assert.near(sum, nn.cross_entropy(logits, target, { reduction = 'sum' }):item(), 1e-5)
  end)

  it('mistakes are errors with a name', function()
    for want, f in pairs {
      ["nn.FeedForward: no activation 'tanh'"] = function() nn.FeedForward { 2, 3, activation = 'tanh' } end,
      ["nn.Linear: unknown option 'biass'"] = function() nn.Linear { 2, 3, biass = false } end,
      ['nn.Linear: wants { in, out }, not { 3, nil }'] = function() nn.Linear { 3 } end,
      ['nn.Linear: wants { in, out }, not { nil, nil }'] = function() nn.Linear() end,
      ['nn.Dropout: p must be in 0 to 1, not 2'] = function() nn.Dropout(2) end,
      ['nn.MultiheadAttention: dim 10 does not divide into 4 heads'] = function() nn.MultiheadAttention { 10, 4 } end,
      ['rope is for attention over itself'] = function() nn.MultiheadAttention { 8, 4, cross = true, rope = true } end,
      ["nn.TransformerEncoderLayer: unknown option 'head'"] = function() nn.TransformerEncoderLayer { dim = 8, head = 2 } end,
    } do
      local ok, message = pcall(f)
      assert.is_false(ok)
      assert.truthy(message:find(want, 1, true), message)
    end
  end)
end)
