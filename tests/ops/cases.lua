--- Every operation: how it is called, what it should give in plain Lua, on which inputs.
--
-- A case is { name, call, ref, inputs = { set, … }, … }. A set lists the arguments: a shape for f32
-- values in `range` (-2 to 2), or { shape, ids = n | mask = true | range = {lo, hi} }. Fields:
--   empty    sets with sizes of 0          exact    gives integers: compared exactly, no gradient
--   result   its dtype, also from bf16     errors   { { function, pattern }, … }
--   loose    multiple of bf16's rounding step that its gradient may be off (4)
--   views    false: not for the tests of strided inputs
local lumoe = require 'lumoe'
local naive = require 'tests.ops.naive'

local map, along, build, at = naive.map, naive.along, naive.build, naive.at
local cases = {}

local function case(name, call, ref, options)
  options.name, options.call, options.ref = name, call, ref
  cases[#cases + 1] = options
end

local function x_of(...) return lumoe.zeros(...) end

-- ---- elementwise: a op b ------------------------------------------------------------------

local pairs_of_shapes = { { { 2, 3 }, { 2, 3 } }, { { 2, 1, 3 }, { 4, 1 } }, { {}, { 2, 3 } }, { { 3 }, { 2, 3 } } }
local empty_pairs = { { { 0, 3 }, { 0, 3 } }, { { 0, 3 }, { 3 } }, { { 2, 0 }, { 2, 1 } } }

local function binary(name, f, range, more)
  local options = { inputs = pairs_of_shapes, empty = empty_pairs, range = range, errors = {
    { function() return x_of(2, 3)[name](x_of(2, 3), x_of(2, 4)) end,
      name .. ': %[2, 3%] f32 and %[2, 4%] f32 do not broadcast' },
    { function() return x_of(2, 3)[name](x_of(2, 3), 'four') end, name .. ': .*not .*string' },
  } }
  for key, value in pairs(more or {}) do options[key] = value end
  case(name, function(a, b) return a[name](a, b) end, function(a, b) return map(f, a, b) end, options)
end

binary('add', function(a, b) return a + b end)
binary('sub', function(a, b) return a - b end)
binary('mul', function(a, b) return a * b end)
binary('div', function(a, b) return a / b end, { 0.5, 2 }, { loose = 8 })
binary('pow', function(a, b) return a ^ b end, { 0.3, 2 }, { loose = 12 })
binary('maximum', math.max)
binary('minimum', math.min)

for name, f in pairs {
  eq = function(a, b) return a == b end, ne = function(a, b) return a ~= b end,
  lt = function(a, b) return a < b end, le = function(a, b) return a <= b end,
  gt = function(a, b) return a > b end, ge = function(a, b) return a >= b end,
} do
  case(name, function(a, b) return a[name](a, b) end,
    function(a, b) return map(function(x, y) return f(x, y) and 1 or 0 end, a, b) end,
    { inputs = { { { { 3, 4 }, ids = 3 }, { { 3, 4 }, ids = 3 } }, { { { 4 }, ids = 3 }, { { 3, 1 }, ids = 3 } } },
      exact = true, result = 'u8', empty = { { { { 0 }, ids = 3 }, { { 0 }, ids = 3 } } },
      errors = { { function() return x_of(2)[name](x_of(2), x_of(3)) end,
        name .. ': %[2%] f32 and %[3%] f32 do not broadcast' } } })
end

-- ---- elementwise: with numbers ------------------------------------------------------------

for name, f in pairs {
  ['x + 1.5'] = function(x) return x + 1.5 end, ['1.5 + x'] = function(x) return 1.5 + x end,
  ['x - 0.5'] = function(x) return x - 0.5 end, ['0.5 - x'] = function(x) return 0.5 - x end,
  ['x * 3'] = function(x) return x * 3 end, ['x / 4'] = function(x) return x / 4 end,
  ['2 / x'] = function(x) return 2 / x end, ['x ^ 3'] = function(x) return x ^ 3 end,
  ['x ^ 2'] = function(x) return x ^ 2 end, ['x ^ 0.5'] = function(x) return x ^ 0.5 end,
  ['2 ^ x'] = function(x) return 2 ^ x end, ['-x'] = function(x) return -x end,
} do -- the same Lua function serves tensors and numbers
  case(name, f, function(x) return map(f, x) end,
    { inputs = { { { 2, 3 } }, { {} } }, empty = { { { 2, 0 } } }, range = { 0.5, 2 }, loose = 8 })
end

-- ---- elementwise: one tensor --------------------------------------------------------------

local function sigmoid(x) return 1 / (1 + math.exp(-x)) end

local function unary(name, f, range, integers)
  case(name, function(x) return x[name](x) end, function(x) return map(f, x) end,
    { inputs = { { { 2, 3, 4 } }, { {} }, { { 37 } } }, empty = { { { 0, 3 } }, { { 0 } } }, range = range,
      errors = not integers and { { function() local x = lumoe.tensor({ 1 }, { dtype = 'i32' }); return x[name](x) end,
        name .. ': wants f32 or bf16, not i32' } } or nil })
end

unary('exp', math.exp)
unary('log', math.log, { 0.2, 3 })
unary('sqrt', math.sqrt, { 0.2, 3 })
unary('rsqrt', function(x) return 1 / math.sqrt(x) end, { 0.2, 3 })
unary('abs', math.abs, nil, true)
unary('square', function(x) return x * x end)
unary('reciprocal', function(x) return 1 / x end, { 0.5, 2 })
unary('sin', math.sin)
unary('cos', math.cos)
unary('relu', function(x) return math.max(x, 0) end)
unary('gelu', function(x) return x / 2 * (1 + naive.erf(x / math.sqrt(2))) end)
unary('gelu_tanh', function(x)
  return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ^ 3)))
end)
unary('silu', function(x) return x * sigmoid(x) end)
unary('tanh', math.tanh)
unary('sigmoid', sigmoid)

case('swiglu', function(x) return x:swiglu() end, function(x)
  return along(x, -1, function(line)
    local out, h = {}, #line / 2
    for i = 1, h do out[i] = line[i] * sigmoid(line[i]) * line[h + i] end
    return out
  end)
end, { inputs = { { { 3, 8 } }, { { 2, 3, 2 } } }, empty = { { { 0, 4 } }, { { 2, 0 } } },
  errors = { { function() return x_of(2, 3):swiglu() end, 'swiglu: %[2, 3%] f32 has no even last dim' } } })

case('clamp', function(x) return x:clamp(-0.7, 1.1) end,
  function(x) return map(function(v) return math.min(math.max(v, -0.7), 1.1) end, x) end,
  { inputs = { { { 4, 5 } } }, empty = { { { 0 } } } })

case('where', function(c, a, b) return lumoe.where(c, a, b) end,
  function(c, a, b) return map(function(t, x, y) return t ~= 0 and x or y end, c, a, b) end,
  { inputs = { { { { 2, 3 }, mask = true }, { 2, 3 }, { 2, 3 } }, { { { 3 }, mask = true }, { 2, 1 }, { 3 } },
      { { { 2, 1, 3 }, mask = true }, { 3 }, {} } },
    empty = { { { { 0, 3 }, mask = true }, { 0, 3 }, { 3 } } },
    errors = {
      { function() return lumoe.where(x_of(2), x_of(2), x_of(2)) end, 'where: the condition is f32' },
      { function() return lumoe.where(x_of(2):eq(0), x_of(3), x_of(3)) end, 'where: .*%[2%] u8.*%[3%] f32' },
    } })

case('masked_fill', function(x, m) return x:masked_fill(m, -7) end,
  function(x, m) return map(function(v, t) return t ~= 0 and -7 or v end, x, m) end,
  { inputs = { { { 2, 3 }, { { 2, 3 }, mask = true } }, { { 2, 3 }, { { 3 }, mask = true } } },
    empty = { { { 0, 3 }, { { 3 }, mask = true } } } })

-- ---- reductions ---------------------------------------------------------------------------

local function mean(list) return naive.sum(list) / #list end

for name, f in pairs { sum = naive.sum, mean = mean } do
  case(name, function(x) return x[name](x, 1) end, function(x) return along(x, 1, f) end,
    { inputs = { { { 2, 3, 4 } }, { { 5, 6 } } }, empty = { { { 0, 3 } } }, errors = {
      { function() return x_of(2, 3)[name](x_of(2, 3), 2) end, name .. ': dim 2 of a tensor with 2 dims' } } })
  case(name .. ' keepdim', function(x) return x[name](x, -2, true) end, function(x) return along(x, -2, f, true) end,
    { inputs = { { { 2, 3, 4 } } }, empty = { { { 2, 3, 0 } } } })
  case(name .. ' of all', function(x) return x[name](x) end,
    function(x) return { shape = {}, data = { f(x.data) } } end,
    { inputs = { { { 2, 3, 4 } }, { {} } }, result = 'f32' })
end
case('sum of nothing', function(x) return x:sum(0) end, function(x) return along(x, 0, naive.sum) end,
  { inputs = { { { 2, 2 } } }, empty = { { { 0, 3 } } } })

for name, f in pairs { max = math.max, min = math.min } do
  local function extreme(line) return f(unpack(line)) end
  local function position(line)
    for i, v in ipairs(line) do if v == extreme(line) then return i - 1 end end
  end
  case(name, function(x) return (x[name](x, 1)) end, function(x) return along(x, 1, extreme) end,
    { inputs = { { { 2, 5, 3 } } }, empty = { { { 0, 3 } } }, errors = {
      { function() return x_of(2, 0)[name](x_of(2, 0), 1) end, name .. ': %[2, 0%] f32 has nothing in dim 1' } } })
  case(name .. ' keepdim', function(x) return (x[name](x, 0, true)) end,
    function(x) return along(x, 0, extreme, true) end, { inputs = { { { 4, 3 } } } })
  case(name .. ' of all', function(x) return x[name](x) end,
    function(x) return { shape = {}, data = { extreme(x.data) } } end, { inputs = { { { 4, 3 } } } })
  case(name .. ' ids', function(x) return (select(2, x[name](x, -1))) end,
    function(x) return along(x, -1, position) end,
    { inputs = { { { 3, 6 } }, { { { 4, 9 }, ids = 3 } } }, exact = true, result = 'i64' })
  case('arg' .. name, function(x) return x['arg' .. name](x, 0) end, function(x) return along(x, 0, position) end,
    { inputs = { { { 7, 2 } }, { { { 9 }, ids = 3 } } }, exact = true, result = 'i64' })
end

case('cumsum', function(x) return x:cumsum(1) end, function(x)
  return along(x, 1, function(line)
    local out, run = {}, 0
    for i, v in ipairs(line) do
      run = run + v
      out[i] = run
    end
    return out
  end)
end, { inputs = { { { 2, 5, 3 } }, { { 3, 4 } } }, empty = { { { 2, 0 } }, { { 0, 2 } } }, loose = 10 })

-- ---- softmax and norms --------------------------------------------------------------------

local function log_softmax(line)
  local lse, out = naive.logsumexp(line), {}
  for i, v in ipairs(line) do out[i] = v - lse end
  return out
end

for _, dim in ipairs { -1, 0, 1 } do
  case('softmax ' .. dim, function(x) return x:softmax(dim) end, function(x) return along(x, dim, naive.softmax) end,
    { inputs = { { { 3, 4, 5 } }, { { 2, 3 } } }, empty = { { { 0, 3 } }, { { 3, 0 } } }, errors = {
      { function() return x_of(2, 3):softmax(2) end, 'softmax: dim 2 of a tensor with 2 dims' },
      { function() return x_of({ 2 }, { dtype = 'i32' }):softmax() end, 'softmax: wants f32 or bf16, not i32' } } })
  case('log_softmax ' .. dim, function(x) return x:log_softmax(dim) end,
    function(x) return along(x, dim, log_softmax) end,
    { inputs = { { { 3, 4, 5 } } }, empty = { { { 0, 3 } } } })
  case('logsumexp ' .. dim, function(x) return x:logsumexp(dim) end,
    function(x) return along(x, dim, naive.logsumexp) end,
    { inputs = { { { 3, 4, 5 } } }, empty = { { { 0, 3, 0 } } } })
end
case('softmax of a number', function(x) return x:softmax(0) end, function() return { shape = {}, data = { 1 } } end,
  { inputs = { { {} } } })
case('logsumexp keepdim', function(x) return x:logsumexp(1, true) end,
  function(x) return along(x, 1, naive.logsumexp, true) end, { inputs = { { { 3, 4, 5 } } } })
case('softmax of large values', function(x) return (x * 100):softmax(-1) end,
  function(x) return along(map(function(v) return v * 100 end, x), -1, naive.softmax) end,
  { inputs = { { { 3, 7 } } }, tolerance = 1e-4, bf16 = false })

local function normalized(line, center, eps)
  local m = center and mean(line) or 0
  local squares, out = 0, {}
  for _, v in ipairs(line) do squares = squares + (v - m) ^ 2 end
  for i, v in ipairs(line) do out[i] = (v - m) / math.sqrt(squares / #line + eps) end
  return out
end

case('layer_norm', function(x, w, b) return x:layer_norm(w, b, 1e-3) end, function(x, w, b)
  return map(function(v, s, t) return v * s + t end,
    along(x, -1, function(line) return normalized(line, true, 1e-3) end), w, b)
end, { inputs = { { { 4, 6 }, { 6 }, { 6 } }, { { 2, 3, 5 }, { 5 }, { 5 } } }, loose = 8,
  empty = { { { 0, 6 }, { 6 }, { 6 } }, { { 2, 0 }, { 0 }, { 0 } } }, errors = {
    { function() return x_of(2, 3):layer_norm(x_of(2)) end, 'layer_norm: weight is %[2%] f32, but x is %[2, 3%] f32' },
    { function() return x_of(2, 3):layer_norm(x_of(3), x_of(1)) end, 'layer_norm: bias is %[1%] f32' } } })
case('layer_norm, plain', function(x) return x:layer_norm() end,
  function(x) return along(x, -1, function(line) return normalized(line, true, 1e-5) end) end,
  { inputs = { { { 4, 6 } } }, loose = 8 })
case('rms_norm', function(x, w) return x:rms_norm(w, 1e-3) end, function(x, w)
  return map(function(v, s) return v * s end,
    along(x, -1, function(line) return normalized(line, false, 1e-3) end), w)
end, { inputs = { { { 4, 6 }, { 6 } }, { { 2, 3, 5 }, { 5 } } }, empty = { { { 0, 6 }, { 6 } } }, loose = 8, errors = {
  { function() return x_of(2, 2):rms_norm(x_of(3)) end, 'rms_norm: weight is %[3%] f32, but x is %[2, 2%] f32' },
  { function() return x_of():rms_norm() end, 'rms_norm: %[%] f32 has no last dim' } } })
case('rms_norm, plain', function(x) return x:rms_norm() end,
  function(x) return along(x, -1, function(line) return normalized(line, false, 1e-6) end) end,
  { inputs = { { { 4, 6 } } }, loose = 8 })

-- A residual, and the norm of the sum; with draws they are in residual_spec.lua.
case('dropout_add, p = 0', function(h, x) return h:dropout_add(x, 0, 0, 0) end,
  function(h, x) return map(function(a, b) return a + b end, h, x) end,
  { inputs = { { { 3, 5 }, { 3, 5 } }, { {}, {} } }, empty = { { { 0, 5 }, { 0, 5 } } }, errors = {
    { function() return x_of(2, 3):dropout_add(x_of(3), 0, 0, 0) end, 'dropout_add: h is %[2, 3%] f32, but x is %[3%] f32' },
    { function() return x_of(2):dropout_add(x_of(2), 2, 0, 0) end, 'dropout_add: p is 2, wants 0 to 1' } } })
case('dropout_add_layer_norm, p = 0', function(h, x, w, b)
  local sum, y = h:dropout_add_layer_norm(x, w, b, 1e-3, 0, 0, 0)
  return y + sum / 2
end, function(h, x, w, b)
  local sum = map(function(c, d) return c + d end, h, x)
  local normed = map(function(v, s, t) return v * s + t end,
    along(sum, -1, function(line) return normalized(line, true, 1e-3) end), w, b)
  return map(function(v, u) return v + u / 2 end, normed, sum)
end, { inputs = { { { 4, 6 }, { 4, 6 }, { 6 }, { 6 } }, { { 2, 3, 5 }, { 2, 3, 5 }, { 5 }, { 5 } } }, loose = 12,
  empty = { { { 0, 6 }, { 0, 6 }, { 6 }, { 6 } }, { { 2, 0 }, { 2, 0 }, { 0 }, { 0 } } }, errors = {
    { function() return x_of(2, 3):dropout_add_layer_norm(x_of(2, 3), x_of(2), nil, 0, 0, 0, 0) end,
      'dropout_add_layer_norm: weight is %[2%] f32, but x is %[2, 3%] f32' },
    { function() return x_of(2, 3):dropout_add_layer_norm(x_of(3, 2), nil, nil, 0, 0, 0, 0) end,
      'dropout_add_layer_norm: h is %[2, 3%] f32, but x is %[3, 2%] f32' } } })
case('dropout_add_rms_norm, p = 0', function(h, x, w)
  local sum, y = h:dropout_add_rms_norm(x, w, 1e-3, 0, 0, 0)
  return y + sum / 2
end, function(h, x, w)
  local sum = map(function(c, d) return c + d end, h, x)
  return map(function(v, s, u) return v * s + u / 2 end,
    along(sum, -1, function(line) return normalized(line, false, 1e-3) end), w, sum)
end, { inputs = { { { 4, 6 }, { 4, 6 }, { 6 } } }, empty = { { { 0, 6 }, { 0, 6 }, { 6 } } }, loose = 12, errors = {
  { function() return x_of():dropout_add_rms_norm(x_of(), nil, 0, 0, 0, 0) end,
    'dropout_add_rms_norm: %[%] f32 has no last dim' } } })

-- ---- products -----------------------------------------------------------------------------

case('matmul', function(a, b) return a:matmul(b) end, naive.matmul,
  { inputs = { { { 3, 4 }, { 4, 5 } }, { { 2, 3, 4 }, { 4, 5 } }, { { 3, 4 }, { 2, 4, 5 } },
      { { 2, 1, 3, 4 }, { 3, 4, 2 } }, { { 1, 7 }, { 7, 1 } } },
    empty = { { { 0, 4 }, { 4, 5 } }, { { 3, 0 }, { 0, 5 } }, { { 0, 3, 4 }, { 4, 5 } } }, loose = 8, errors = {
      { function() return x_of(8, 5):matmul(x_of(4, 2)) end,
        'matmul: %[8, 5%] f32 × %[4, 2%] f32: inner sizes 5 and 4 differ' },
      { function() return x_of(2, 3, 4):matmul(x_of(3, 4, 5)) end, 'matmul: .*batch dims do not broadcast' },
      { function() return x_of():matmul(x_of(2)) end, 'matmul: .*multiplied with %*' },
      { function() return x_of(2):matmul(x_of({ 2 }, { dtype = 'i64' })) end, 'matmul: wants f32 or bf16, not i64' },
    } })
case('matmul, vector · matrix', function(a, b) return a:matmul(b) end, function(a, b)
  return naive.reshape(naive.matmul(naive.reshape(a, { 1, a.shape[1] }), b), { b.shape[2] })
end, { inputs = { { { 4 }, { 4, 3 } } }, loose = 8 })
case('matmul, matrix · vector', function(a, b) return a:matmul(b) end, function(a, b)
  return naive.reshape(naive.matmul(a, naive.reshape(b, { b.shape[1], 1 })), { a.shape[1] })
end, { inputs = { { { 3, 4 }, { 4 } } }, loose = 8 })
case('matmul, vector · vector', function(a, b) return a:matmul(b) end, function(a, b)
  return { shape = {}, data = { naive.sum(map(function(x, y) return x * y end, a, b).data) } }
end, { inputs = { { { 4 }, { 4 } } }, loose = 8 })
case('bmm', function(a, b) return a:bmm(b) end, naive.matmul,
  { inputs = { { { 2, 3, 4 }, { 2, 4, 5 } } }, empty = { { { 0, 3, 4 }, { 0, 4, 5 } }, { { 2, 3, 0 }, { 2, 0, 5 } } },
    loose = 8, errors = { { function() return x_of(2, 3, 4):bmm(x_of(3, 4, 5)) end,
      'bmm: %[2, 3, 4%] f32 × %[3, 4, 5%] f32: wants' } } })

local function linear(x, w, b)
  local y = naive.matmul(naive.reshape(x, { naive.numel(x.shape) / x.shape[#x.shape], x.shape[#x.shape] }),
    naive.transpose(w, 0, 1))
  local shape = { unpack(x.shape) }
  shape[#shape] = w.shape[1]
  y = naive.reshape(y, shape)
  return b and map(function(v, c) return v + c end, y, b) or y
end
case('linear', function(x, w) return x:linear(w) end, linear,
  { inputs = { { { 3, 4 }, { 5, 4 } }, { { 2, 3, 4 }, { 5, 4 } }, { { 4 }, { 2, 4 } } }, empty = { { { 0, 4 }, { 5, 4 } } },
    loose = 8, errors = { { function() return x_of(2, 3):linear(x_of(4, 2)) end,
      'linear: weight is %[4, 2%] f32, but x is %[2, 3%] f32' } } })
case('linear with bias', function(x, w, b) return x:linear(w, b) end, linear,
  { inputs = { { { 3, 4 }, { 5, 4 }, { 5 } }, { { 2, 3, 4 }, { 5, 4 }, { 5 } } }, loose = 8,
    empty = { { { 0, 4 }, { 5, 4 }, { 5 } } }, errors = {
      { function() return x_of(2, 3):linear(x_of(4, 3), x_of(3)) end, 'linear: bias is %[3%] f32, but weight' } } })

local function relu_of(x, w, b) return map(function(v) return math.max(v, 0) end, linear(x, w, b)) end
case('linear_relu', function(x, w) return x:linear_relu(w) end, relu_of,
  { inputs = { { { 3, 4 }, { 5, 4 } }, { { 2, 3, 4 }, { 5, 4 } } }, empty = { { { 0, 4 }, { 5, 4 } } }, loose = 8,
    errors = { { function() return x_of(2, 3):linear_relu(x_of(4, 2)) end, 'linear_relu: weight is %[4, 2%] f32, but x is' } } })
case('linear_relu with bias', function(x, w, b) return x:linear_relu(w, b) end, relu_of,
  { inputs = { { { 3, 4 }, { 5, 4 }, { 5 } } }, loose = 8, empty = { { { 0, 4 }, { 5, 4 }, { 5 } } } })

-- ---- shape --------------------------------------------------------------------------------

case('reshape', function(x) return x:reshape(3, -1) end,
  function(x) return naive.reshape(x, { 3, naive.numel(x.shape) / 3 }) end,
  { inputs = { { { 2, 3, 4 } } }, empty = { { { 0, 3 } } }, errors = {
    { function() return x_of(2, 3):reshape(4, 2) end, 'reshape: %[2, 3%] f32 cannot become %[4, 2%]' },
    { function() return x_of(2, 3):reshape(-1, 4) end, 'reshape: %[2, 3%] f32 cannot become %[%-1, 4%]' } } })
case('permute', function(x) return x:permute(2, 0, 1) end, function(x) return naive.permute(x, { 2, 0, 1 }) end,
  { inputs = { { { 2, 3, 4 } } }, empty = { { { 0, 3, 2 } } }, errors = {
    { function() return x_of(2, 3):permute(0, 0) end, 'permute: dim 0 is named twice' },
    { function() return x_of(2, 3):permute(0) end, 'permute: 1 dims named, the tensor has 2' } } })
case('transpose', function(x) return x:transpose(0, -1) end, function(x) return naive.transpose(x, 0, -1) end,
  { inputs = { { { 2, 3, 4 } } }, empty = { { { 0, 3 } } } })
case('expand', function(x) return x:expand(2, 3, 4) end,
  function(x) return build({ 2, 3, 4 }, function(i) return at(x, i) end) end,
  { inputs = { { { 3, 1 } }, { { 1, 3, 4 } }, { {} } }, errors = {
    { function() return x_of(2, 3):expand(2, 4) end, 'expand: %[2, 3%] f32 cannot become %[2, 4%]' } } })
case('narrow', function(x) return x:narrow(1, 1, 2) end, function(x) return naive.narrow(x, 1, 1, 2) end,
  { inputs = { { { 2, 4, 3 } } }, empty = { { { 0, 4 } } }, errors = {
    { function() return x_of(2, 3):narrow(1, 2, 2) end, 'narrow: start 2, length 2 in dim 1 of %[2, 3%] f32' } } })
case('narrow to nothing', function(x) return x:narrow(0, 1, 0) end, function(x) return naive.narrow(x, 0, 1, 0) end,
  { inputs = { { { 3, 2 } } } })
case('select', function(x) return x:select(1, -1) end,
  function(x) return along(x, 1, function(line) return line[#line] end) end,
  { inputs = { { { 2, 4, 3 } } }, empty = { { { 0, 4 } } }, errors = {
    { function() return x_of(2, 3):select(1, 3) end, 'index 3 is out of range in dim 1 of %[2, 3%] f32' } } })
case('unsqueeze', function(x) return x:unsqueeze(-1) end, function(x)
  return naive.reshape(x, { x.shape[1], x.shape[2], 1 })
end, { inputs = { { { 2, 3 } } }, empty = { { { 0, 3 } } } })
case('squeeze', function(x) return x:squeeze(1) end, function(x)
  return naive.reshape(x, { x.shape[1], x.shape[3] })
end, { inputs = { { { 2, 1, 3 } } }, empty = { { { 0, 1, 3 } } } })
case('squeeze, all dims', function(x) return x:squeeze() end, function(x)
  return naive.reshape(x, { x.shape[2], x.shape[4] })
end, { inputs = { { { 1, 2, 1, 3, 1 } } }, empty = { { { 1, 0, 1, 3, 1 } } } })
case('clone', function(x) return x:clone() end, function(x) return x end, { inputs = { { { 2, 3 } } }, empty = { { { 0 } } } })
case('contiguous', function(x) return x:transpose(0, 1):contiguous() end,
  function(x) return naive.transpose(x, 0, 1) end, { inputs = { { { 2, 3 } } }, empty = { { { 0, 2 } } } })
case('to f32', function(x) return x:to 'f32' end, function(x) return x end,
  { inputs = { { { 2, 3 } } }, result = 'f32', empty = { { { 0 } } } })
case('split', function(x)
  local parts = x:split(2, 1)
  return lumoe.cat({ parts[2], parts[1] }, 1)
end, function(x) return along(x, 1, function(line) return { line[3], line[1], line[2] } end) end,
  { inputs = { { { 2, 3, 2 } } } })

local function cat(dim, ...)
  local arrays = { ... }
  local shape = { unpack(arrays[1].shape) }
  shape[dim + 1] = 0
  for _, a in ipairs(arrays) do shape[dim + 1] = shape[dim + 1] + a.shape[dim + 1] end
  return build(shape, function(i)
    local j = { unpack(i) }
    for _, a in ipairs(arrays) do
      if j[dim + 1] < a.shape[dim + 1] then return at(a, j) end
      j[dim + 1] = j[dim + 1] - a.shape[dim + 1]
    end
  end)
end
for _, dim in ipairs { 0, 1 } do
  case('cat ' .. dim, function(a, b) return lumoe.cat({ a, b, a }, dim) end, function(a, b) return cat(dim, a, b, a) end,
    { inputs = { dim == 0 and { { 2, 3 }, { 4, 3 } } or { { 2, 3 }, { 2, 1 } } }, empty = { { { 0, 3 }, { 0, 3 } } },
      errors = { { function() return lumoe.cat({ x_of(2, 3), x_of(3, 4) }, dim) end,
        'cat: %[3, 4%] f32 does not join %[2, 3%] f32' },
        { function() return lumoe.cat({ x_of(2), 7 }, dim) end, 'cat: list%[2%] must be a tensor, not 7' } } })
end
case('stack', function(a, b) return lumoe.stack({ a, b }, 1) end, function(a, b)
  return build({ a.shape[1], 2, a.shape[2] }, function(i) return at(i[2] == 0 and a or b, { i[1], i[3] }) end)
end, { inputs = { { { 2, 3 }, { 2, 3 } } }, empty = { { { 0, 3 }, { 0, 3 } } } })

-- ---- by ids -------------------------------------------------------------------------------

case('embedding', function(w, ids) return w:embedding(ids) end, function(w, ids)
  local shape = { unpack(ids.shape) }
  shape[#shape + 1] = w.shape[2]
  return build(shape, function(i)
    return at(w, { at(ids, { unpack(i, 1, #i - 1) }), i[#i] })
  end)
end, { inputs = { { { 5, 3 }, { { 2, 4 }, ids = 5 } }, { { 5, 3 }, { {}, ids = 5 } } }, loose = 10,
  empty = { { { 5, 3 }, { { 0 }, ids = 5 } }, { { 5, 0 }, { { 2 }, ids = 5 } } }, errors = {
    { function() return x_of(3, 2):embedding(lumoe.tensor({ 0, 3 }, { dtype = 'i64' })) end,
      'embedding: id 3 at position 1 is not in 0 to 2' },
    { function() return x_of(3, 2):embedding(x_of(2)) end, 'embedding: ids are f32; wants i32 or i64' } } })
-- Rows 2 to 6 of 8: ids elsewhere give zeros.
case('embedding_part', function(w, ids) return w:embedding_part(ids, 2, 8) end, function(w, ids)
  local shape = { unpack(ids.shape) }
  shape[#shape + 1] = w.shape[2]
  return build(shape, function(i)
    local id = at(ids, { unpack(i, 1, #i - 1) }) - 2
    return id >= 0 and id < 5 and at(w, { id, i[#i] }) or 0
  end)
end, { inputs = { { { 5, 3 }, { { 2, 9 }, ids = 8 } }, { { 5, 3 }, { {}, ids = 8 } } }, loose = 10,
  empty = { { { 5, 3 }, { { 0 }, ids = 8 } } }, errors = {
    { function() return x_of(3, 2):embedding_part(lumoe.tensor({ 0, 8 }, { dtype = 'i64' }), 0, 8) end,
      'embedding: id 8 at position 1 is not in 0 to 7' },
    { function() return x_of(3, 2):embedding_part(lumoe.tensor({ 0 }, { dtype = 'i64' }), 6, 8) end,
      'embedding: weight is %[3, 2%] f32, but stands for rows from 6 of 8' } } })
for _, dim in ipairs { 0, 1 } do
  case('index_select ' .. dim, function(x, ids) return x:index_select(dim, ids) end, function(x, ids)
    return along(x, dim, function(line)
      local out = {}
      for i, id in ipairs(ids.data) do out[i] = line[id + 1] end
      return out
    end)
  end, { inputs = { { { 4, 4, 3 }, { { 6 }, ids = 4 } } }, empty = { { { 4, 4 }, { { 0 }, ids = 4 } } }, loose = 10,
    errors = { { function() return x_of(2, 2):index_select(dim, lumoe.tensor({ -1 }, { dtype = 'i32' })) end,
      'index_select: id %-1 at position 0 is not in 0 to 1' } } })
end
case('gather', function(x, ids) return x:gather(1, ids) end, function(x, ids)
  return build(ids.shape, function(i) return at(x, { i[1], at(ids, i), i[3] }) end)
end, { inputs = { { { 2, 4, 3 }, { { 2, 5, 3 }, ids = 4 } }, { { 3, 4, 3 }, { { 2, 2, 2 }, ids = 4 } } }, loose = 10,
  empty = { { { 2, 4, 3 }, { { 2, 0, 3 }, ids = 4 } } }, errors = {
    { function() return x_of(2, 3):gather(1, lumoe.zeros({ 3, 1 }, { dtype = 'i64' })) end,
      'gather: ids are %[3, 1%] i64, but x is %[2, 3%] f32' },
    { function() return x_of(1, 3):gather(1, lumoe.tensor({ { 1, 5 } }, { dtype = 'i64' })) end,
      'gather: id 5 at position 1 is not in 0 to 2' } } })
case('scatter_add', function(x, ids, src) return x:scatter_add(1, ids, src) end, function(x, ids, src)
  local out = { shape = x.shape, data = { unpack(x.data) } }
  build(ids.shape, function(i)
    local flat = i[1] * x.shape[2] + at(ids, i) + 1
    out.data[flat] = out.data[flat] + at(src, i)
    return 0
  end)
  return out
end, { inputs = { { { 3, 4 }, { { 3, 6 }, ids = 4 }, { 3, 6 } }, { { 3, 4 }, { { 2, 2 }, ids = 4 }, { 2, 2 } } }, loose = 8,
  empty = { { { 3, 4 }, { { 3, 0 }, ids = 4 }, { 3, 0 } } }, errors = {
    { function() return x_of(2, 3):scatter_add(1, lumoe.zeros({ 2, 1 }, { dtype = 'i64' }), x_of(2, 2)) end,
      'scatter_add: ids are %[2, 1%] i64, but src is %[2, 2%] f32' } } })
case('one_hot', function(ids) return ids:one_hot(4) end, function(ids)
  local shape = { unpack(ids.shape) }
  shape[#shape + 1] = 4
  return build(shape, function(i) return at(ids, { unpack(i, 1, #i - 1) }) == i[#i] and 1 or 0 end)
end, { inputs = { { { { 2, 3 }, ids = 4 } }, { { {}, ids = 4 } } }, exact = true, result = 'f32',
  empty = { { { { 0 }, ids = 4 } } }, errors = {
    { function() return lumoe.tensor({ 4 }, { dtype = 'i64' }):one_hot(4) end,
      'one_hot: id 4 at position 0 is not in 0 to 3' } } })

-- ---- order --------------------------------------------------------------------------------

local function first(line, ids, k)
  local out = {}
  for i = 1, k do out[i] = line[ids[i] + 1] end
  return out
end
for _, dim in ipairs { -1, 0 } do
  case('topk ' .. dim, function(x) return (x:topk(2, dim)) end, function(x)
    return along(x, dim, function(line) return first(line, naive.order(line, true), 2) end)
  end, { inputs = { { { 4, 5, 6 } }, { { 3 } } }, empty = { { { 3, 0, 4 } } }, errors = {
    { function() return x_of(2, 2):topk(3, dim) end, 'topk: k is 3, but dim . of %[2, 2%] f32 has 2' } } })
  case('topk ids ' .. dim, function(x) return (select(2, x:topk(3, dim))) end, function(x)
    return along(x, dim, function(line) return { unpack(naive.order(line, true), 1, 3) } end)
  end, { inputs = { { { 4, 5 } }, { { { 7, 20 }, ids = 4 } } }, exact = true, result = 'i64' })
  for _, descending in ipairs { false, true } do
    local name = descending and 'descending ' or ''
    case('sort ' .. name .. dim, function(x) return (x:sort(dim, descending)) end, function(x)
      return along(x, dim, function(line) return first(line, naive.order(line, descending), #line) end)
    end, { inputs = { { { 4, 5, 3 } } }, empty = { { { 3, 0, 4 } }, { { 0 } } } })
    case('sort ids ' .. name .. dim, function(x) return (select(2, x:sort(dim, descending))) end, function(x)
      return along(x, dim, function(line) return naive.order(line, descending) end)
    end, { inputs = { { { 4, 5 } }, { { { 20, 7 }, ids = 4 } } }, exact = true, result = 'i64' })
  end
end

-- ---- cross entropy ------------------------------------------------------------------------

local function losses(x, t, smoothing, z)
  return along(build({ naive.numel(t.shape), x.shape[#x.shape] }, function(i)
    return x.data[i[1] * x.shape[#x.shape] + i[2] + 1]
  end), 1, (function()
    local row = 0
    return function(line)
      row = row + 1
      local id = t.data[row]
      if not id or id == 1 then return 0 end -- the tests ignore class 1
      local lse = naive.logsumexp(line)
      return (1 - smoothing) * (lse - line[id + 1]) + smoothing * (lse - mean(line)) + z * lse ^ 2
    end
  end)())
end
for _, reduction in ipairs { 'none', 'sum', 'mean' } do
  for _, extra in ipairs { { 0, 0 }, { 0.1, 0 }, { 0.2, 0.01 } } do
    case(('cross_entropy %s, smoothing %g, z %g'):format(reduction, extra[1], extra[2]), function(x, t)
      return x:cross_entropy(t,
        { reduction = reduction, ignore_index = 1, label_smoothing = extra[1], z_loss = extra[2] })
    end, function(x, t)
      local list = losses(x, t, extra[1], extra[2])
      if reduction == 'none' then return naive.reshape(list, t.shape) end
      local counted = 0
      for _, id in ipairs(t.data) do if id ~= 1 then counted = counted + 1 end end
      return { shape = {}, data = { naive.sum(list.data) / (reduction == 'mean' and math.max(1, counted) or 1) } }
    end, { inputs = { { { 6, 5 }, { { 6 }, ids = 5 } }, { { 2, 3, 5 }, { { 2, 3 }, ids = 5 } },
        { { 5 }, { {}, ids = 5 } } }, result = 'f32', empty = { { { 0, 5 }, { { 0 }, ids = 5 } } } })
  end
end
case('cross_entropy of the ignored', function(x, t) return x:cross_entropy(t * 0 - 100) end,
  function() return { shape = {}, data = { 0 } } end,
  { inputs = { { { 3, 5 }, { { 3 }, ids = 5 } } }, result = 'f32', errors = {
    { function() return x_of(2, 3):cross_entropy(lumoe.zeros({ 3 }, { dtype = 'i64' })) end,
      'cross_entropy: logits are %[2, 3%] f32, but targets are %[3%] i64' },
    { function() return x_of(2, 3):cross_entropy(lumoe.tensor({ 0, 3 }, { dtype = 'i64' })) end,
      'cross_entropy: id 3 at position 1 is not in 0 to 2' },
    { function() return x_of(2, 3):cross_entropy(x_of(2)) end, 'cross_entropy: ids are f32' },
    { function() return x_of(2, 3):cross_entropy(x_of(2), { smoothing = 1 }) end,
      "cross_entropy: unknown option 'smoothing'" },
    { function() return x_of(2, 3):cross_entropy(x_of(2), { reduction = 'max' }) end,
      "cross_entropy: no reduction 'max'" } } })

for _, extra in ipairs { { 0, 0 }, { 0.2, 0.01 } } do
  case(('linear_cross_entropy, smoothing %g, z %g'):format(extra[1], extra[2]), function(x, w, t)
    return x:linear_cross_entropy(w, t, { ignore_index = 1, label_smoothing = extra[1], z_loss = extra[2] })
  end, function(x, w, t)
    local shape = { unpack(x.shape) }
    shape[#shape] = w.shape[1]
    local logits = build(shape, function(i)
      local sum, from = 0, { unpack(i) }
      for d = 0, w.shape[2] - 1 do
        from[#from] = d
        sum = sum + at(x, from) * at(w, { i[#i], d })
      end
      return sum
    end)
    return { shape = {}, data = { naive.sum(losses(logits, t, extra[1], extra[2]).data) } }
  end, { inputs = { { { 6, 3 }, { 5, 3 }, { { 6 }, ids = 5 } }, { { 2, 3, 4 }, { 5, 4 }, { { 2, 3 }, ids = 5 } } },
    result = 'f32', empty = { { { 0, 3 }, { 5, 3 }, { { 0 }, ids = 5 } } }, errors = {
      { function() return x_of(2, 3):linear_cross_entropy(x_of(5, 4), lumoe.zeros({ 2 }, { dtype = 'i64' })) end,
        'linear_cross_entropy: x is %[2, 3%] f32, weight %[5, 4%] f32, targets %[2%] i64' },
      { function() return x_of(2, 3):linear_cross_entropy(x_of(5, 3), lumoe.tensor({ 0, 5 }, { dtype = 'i64' })) end,
        'linear_cross_entropy: id 5 at position 1 is not in 0 to 4' } } })
end

-- ---- attention, rotary positions ----------------------------------------------------------

local function attention(q, k, v, scale, causal, mask)
  local heads, groups, queries, keys = q.shape[2], k.shape[2], q.shape[3], k.shape[3]
  scale = scale or 1 / math.sqrt(q.shape[4])
  return build(q.shape, function(i)
    local b, h, t, e = i[1], i[2], i[3], i[4]
    local g = math.floor(h / (heads / groups))
    local scores, seen = {}, {}
    for j = 0, keys - 1 do
      if (not causal or j <= t + keys - queries) and (not mask or at(mask, { b, j }) ~= 0) then
        local s = 0
        for d = 0, q.shape[4] - 1 do s = s + at(q, { b, h, t, d }) * at(k, { b, g, j, d }) end
        scores[#scores + 1], seen[#seen + 1] = s * scale, j
      end
    end
    local sum = 0
    for n, p in ipairs(naive.softmax(scores)) do sum = sum + p * at(v, { b, g, seen[n], e }) end
    return sum
  end)
end
local function qkv(b, h, g, tq, tk, d) return { { b, h, tq, d }, { b, g, tk, d }, { b, g, tk, d } } end

case('attention', function(q, k, v) return q:attention(k, v) end,
  function(q, k, v) return attention(q, k, v) end,
  { inputs = { qkv(2, 2, 2, 3, 5, 4), qkv(1, 4, 2, 3, 3, 2) }, loose = 8,
    empty = { qkv(0, 2, 2, 3, 5, 4), qkv(2, 2, 2, 0, 5, 4), qkv(2, 2, 2, 3, 0, 4) }, errors = {
      { function() return x_of(2, 3, 4):attention(x_of(2, 3, 4), x_of(2, 3, 4)) end,
        'attention: q is %[2, 3, 4%] f32, k is %[2, 3, 4%] f32' },
      { function() return x_of(2, 3, 4, 8):attention(x_of(2, 2, 4, 8), x_of(2, 2, 4, 8)) end,
        'attention: .*where G divides H' },
      { function() return x_of(2, 1, 4, 8):attention(x_of(2, 1, 4, 8), x_of(2, 1, 4, 8), { key_mask = x_of(2, 4) }) end,
        'attention: key_mask is %[2, 4%] f32, but k is %[2, 1, 4, 8%] f32; wants %[B, Tk%] u8' },
      { function() return x_of(2, 1, 4, 8):attention(x_of(2, 1, 4, 8), x_of(2, 1, 4, 8), { mask = 1 }) end,
        "attention: unknown option 'mask'" } } })
case('attention, causal', function(q, k, v) return q:attention(k, v, { causal = true, scale = 0.7 }) end,
  function(q, k, v) return attention(q, k, v, 0.7, true) end,
  { inputs = { qkv(2, 1, 1, 4, 4, 3), qkv(1, 2, 1, 2, 5, 4), qkv(1, 1, 1, 4, 2, 2) }, loose = 8 })
case('attention, masked', function(m, q, k, v) return q:attention(k, v, { key_mask = m }) end,
  function(m, q, k, v) return attention(q, k, v, nil, false, m) end,
  { inputs = { { { { 2, 5 }, mask = true }, unpack(qkv(2, 2, 2, 3, 5, 4)) } }, loose = 8 })
case('attention, masked and causal', function(m, q, k, v)
  return q:attention(k, v, { key_mask = m, causal = true })
end, function(m, q, k, v) return attention(q, k, v, nil, true, m) end,
  { inputs = { { { { 3, 4 }, mask = true }, unpack(qkv(3, 2, 2, 4, 4, 2)) } }, loose = 8 })

local function rotated(x, positions, interleaved)
  local width, time = x.shape[#x.shape], #x.shape - 1
  return build(x.shape, function(i)
    local e, half = i[#i], width / 2
    local pair = interleaved and math.floor(e / 2) or e % half
    local second = interleaved and e % 2 == 1 or not interleaved and e >= half
    local angle = positions(i[time], i) * 10000 ^ (-2 * pair / width)
    local other = { unpack(i) }
    if interleaved then other[#i] = second and e - 1 or e + 1
    else other[#i] = second and e - half or e + half end
    return at(x, i) * math.cos(angle) + (second and 1 or -1) * at(x, other) * math.sin(angle)
  end)
end
case('rope', function(x) return x:rope(3) end, function(x) return rotated(x, function(t) return 3 + t end) end,
  { inputs = { { { 2, 3, 4, 6 } }, { { 5, 4 } }, { { 2, 3, 2 } } }, empty = { { { 2, 3, 0, 4 } }, { { 0, 4, 2 } } },
    errors = {
      { function() return x_of(2, 3):rope() end, 'rope: x is %[2, 3%] f32; wants .* even dh' },
      { function() return x_of(2, 4):rope(lumoe.zeros({ 3 }, { dtype = 'i32' })) end,
        'rope: positions are %[3%] i32, but x is %[2, 4%] f32' },
      { function() return x_of(2, 4):rope(-1) end, 'rope: position %-1 is not in 0 to' } } })
case('rope, interleaved', function(x) return x:rope(0, { interleaved = true }) end,
  function(x) return rotated(x, function(t) return t end, true) end, { inputs = { { { 2, 3, 4, 6 } } } })
case('rope by positions', function(x, p) return x:rope(p) end,
  function(x, p) return rotated(x, function(t, i) return at(p, #p.shape == 1 and { t } or { i[1], t }) end) end,
  { inputs = { { { 2, 3, 4, 2 }, { { 4 }, ids = 40 } }, { { 2, 3, 4, 2 }, { { 2, 4 }, ids = 300 } } } })

-- Queries, keys and values cut out of rows [B, T, parts * H * dh], as [B, H, T, dh].
local function part_of(x, heads, parts, part)
  local dim = x.shape[3] / parts / heads
  return build({ x.shape[1], heads, x.shape[2], dim }, function(i)
    return at(x, { i[1], i[3], (part * heads + i[2]) * dim + i[4] })
  end)
end
local function joined(y) -- [B, H, T, dh] to [B, T, H * dh]
  return build({ y.shape[1], y.shape[3], y.shape[2] * y.shape[4] }, function(i)
    return at(y, { i[1], math.floor(i[3] / y.shape[4]), i[2], i[3] % y.shape[4] })
  end)
end
local function packed(x, heads, causal, mask, turned)
  local q, k, v = part_of(x, heads, 3, 0), part_of(x, heads, 3, 1), part_of(x, heads, 3, 2)
  if turned then q, k = rotated(q, function(t) return t end), rotated(k, function(t) return t end) end
  return joined(attention(q, k, v, nil, causal, mask))
end
case('packed_attention', function(x) return x:packed_attention(2) end, function(x) return packed(x, 2) end,
  { inputs = { { { 2, 3, 24 } }, { { 1, 5, 6 } } }, loose = 8, empty = { { { 0, 3, 12 } }, { { 2, 0, 12 } } }, errors = {
    { function() return x_of(2, 3, 8):packed_attention(2) end, 'packed_attention: qkv is %[2, 3, 8%] f32; wants .* H = 2' },
    { function() return x_of(2, 3, 4):packed_attention(2, { kv = x_of(2, 3, 4) }) end,
      'packed_attention: q is %[2, 3, 4%] f32 and kv %[2, 3, 4%] f32; wants' },
    { function() return x_of(2, 3, 4):packed_attention(2, { kv = x_of(2, 3, 8), rope = true }) end,
      'packed_attention: rotary positions are for queries and keys of the same tokens' },
    { function() return x_of(2, 3, 12):packed_attention(2, { key_mask = x_of(2, 3) }) end,
      'packed_attention: key_mask is %[2, 3%] f32, but keys are %[2, 3, 12%] f32; wants %[B, Tk%] u8' } } })
case('packed_attention, causal, rotary', function(x) return x:packed_attention(1, { causal = true, rope = true }) end,
  function(x) return packed(x, 1, true, nil, true) end, { inputs = { { { 2, 4, 18 } }, { { 1, 3, 6 } } }, loose = 8 })
case('packed_attention, masked, rotary', function(m, x) return x:packed_attention(2, { key_mask = m, rope = true }) end,
  function(m, x) return packed(x, 2, false, m, true) end, { inputs = { { { { 3, 4 }, mask = true }, { 3, 4, 24 } } }, loose = 8 })
case('packed_attention, keys of a memory', function(m, q, kv) return q:packed_attention(2, { kv = kv, key_mask = m, scale = 0.7 }) end,
  function(m, q, kv)
    return joined(attention(part_of(q, 2, 1, 0), part_of(kv, 2, 2, 0), part_of(kv, 2, 2, 1), 0.7, false, m))
  end, { inputs = { { { { 2, 5 }, mask = true }, { 2, 3, 8 }, { 2, 5, 16 } } }, loose = 8,
    empty = { { { { 2, 0 }, mask = true }, { 2, 3, 8 }, { 2, 0, 16 } } } })

return cases
