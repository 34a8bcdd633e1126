local jit = require 'jit'
local ffi = require 'ffi'
local lumoe = require 'lumoe'

--- The message of an error, which must start with this file and a line.
local function message_of(f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  assert.matches('^tests/runtime/tensor_spec%.lua:%d+: ', message)
  return (message:gsub('^[^ ]+ ', ''))
end

local function values(x) return x:flatten():totable() end

describe('creation', function()
  it('makes tensors of given sizes, as numbers or a table', function()
    assert.same({ 2, 3 }, lumoe.zeros(2, 3):size())
    assert.same({ 2, 3 }, lumoe.zeros { 2, 3 }:size())
    assert.same({ { 1, 1 } }, lumoe.ones({ 1, 2 }, { dtype = 'bf16' }):totable())
    assert.same({ 7, 7 }, lumoe.full({ 2 }, 7, { dtype = 'i64' }):totable())
    assert.same({}, lumoe.zeros():size())
    assert.same({ 2, 0 }, lumoe.zeros(2, 0):size())
    assert.same({ 2, 3 }, lumoe.empty(2, 3):size())
  end)

  it('counts as PyTorch does', function()
    assert.same({ 0, 1, 2 }, lumoe.arange(3):totable())
    assert.equal('i64', lumoe.arange(3).dtype)
    assert.same({ 2, 4 }, lumoe.arange(2, 6, 2):totable())
    assert.same({ 3, 2, 1 }, lumoe.arange(3, 0, -1):totable())
    assert.same({ 0, 0.5 }, lumoe.arange(0, 1, 0.5):totable())
    assert.equal('f32', lumoe.arange(0, 1, 0.5).dtype)
    assert.same({ 0 }, lumoe.arange(5, 2):size())
    assert.matches('arange: wants stop; .* not 0 numbers', message_of(function() lumoe.arange() end))
    assert.matches('not 4 numbers', message_of(function() lumoe.arange(1, 2, 3, 4) end))
  end)

  it('takes nested tables and FFI arrays', function()
    assert.same({ { 1, 2 }, { 3, 4 } }, lumoe.tensor({ { 1, 2 }, { 3, 4 } }):totable())
    assert.equal(5, lumoe.tensor(5):item())
    assert.same({ 1, 0 }, lumoe.tensor({ true, false }, { dtype = 'u8' }):totable())
    assert.same({ { 1, 2 } }, lumoe.from(ffi.new('int32_t[2]', 1, 2), { 1, 2 }, { dtype = 'i32' }):totable())
  end)

  it('reads no memory that is not there', function()
    local three = ffi.new('float[3]', 1, 2, 3)
    assert.same({ 1, 2 }, lumoe.from(three, { 2 }):totable())
    assert.same({ 2, 3 }, lumoe.from(three + 1, { 2 }):totable())
    assert.same({ { 1 }, { 2 }, { 3 } }, lumoe.from(ffi.new('struct { float x[3]; }', { { 1, 2, 3 } }).x, { 3, 1 }):totable())
    for want, arguments in pairs {
      ['from: wants an FFI array or pointer, not nil'] = { nil, { 3 } },
      ['from: wants an FFI array or pointer, not table'] = { { 1, 2 }, { 2 } },
      ['from: wants an FFI array or pointer, not ctype<int64_t>'] = { 5LL, { 2 } },
      ['from: wants an FFI array or pointer, not ctype<struct lm_handle>'] = { lumoe.ones(2), { 2 } },
      ['from: the pointer is NULL'] = { ffi.cast('float *', nil), { 2 } },
      ['from: the array has 12 bytes, a tensor of these sizes 16'] = { three, { 2, 2 } },
      ['from: the array has 4 bytes, a tensor of these sizes 6'] = { ffi.new 'uint16_t[2]', { 3 }, { dtype = 'bf16' } },
      ['from: wants sizes'] = { three },
    } do
      assert.equal(want, message_of(function() return lumoe.from(unpack(arguments, 1, 3)), nil end))
    end
  end)

  it('takes no number that its dtype does not hold', function()
    for want, f in pairs {
      ['tensor: 300 does not fit in u8, which holds 0 to 255'] = function() lumoe.tensor({ { 1 }, { 300 } }, { dtype = 'u8' }) end,
      ['tensor: -1 does not fit in u8'] = function() lumoe.tensor(-1, { dtype = 'u8' }) end,
      ['tensor: 2147483648 does not fit in i32'] = function() lumoe.tensor({ 2 ^ 31 }, { dtype = 'i32' }) end,
      ['tensor: nan does not fit in i64'] = function() lumoe.tensor({ 0 / 0 }, { dtype = 'i64' }) end,
      ['full: 256 does not fit in u8'] = function() lumoe.full({ 2 }, 256, { dtype = 'u8' }) end,
      ['fill_: 256 does not fit in u8'] = function() lumoe.zeros({ 2 }, { dtype = 'u8' }):fill_(256) end,
      ['fill_: -1 does not fit in u8'] = function() lumoe.zeros({ 2 }, { dtype = 'u8' })[1] = -1 end,
      ['fill_: the value must be a number, not nil'] = function() lumoe.zeros(2):fill_() end,
    } do
      local message = message_of(f)
      assert.truthy(message and message:find(want, 1, true), message)
    end
    assert.same({ 0, 255 }, lumoe.tensor({ 0, 255 }, { dtype = 'u8' }):totable())
    assert.same({ -2 ^ 31, 2 ^ 31 - 1 }, lumoe.tensor({ -2 ^ 31, 2 ^ 31 - 1 }, { dtype = 'i32' }):totable())
  end)

  it('names what it cannot take', function()
    assert.matches('tensor: dim 1 has 2 elements in one place, 1 in another',
      message_of(function() lumoe.tensor { { 1, 2 }, { 3 } } end))
    assert.matches('tensor: dim 1 is a number in one place', message_of(function() lumoe.tensor { { 1 }, 2 } end))
    assert.matches('tensor: holds string', message_of(function() lumoe.tensor { 'x' } end))
    assert.matches("zeros: no dtype 'f64'; there are f32 bf16 i32 i64 u8",
      message_of(function() lumoe.zeros(2, { dtype = 'f64' }) end))
    assert.matches("zeros: unknown option 'type'", message_of(function() lumoe.zeros(2, { type = 'f32' }) end))
    assert.matches('size %-1 in dim 0', message_of(function() lumoe.zeros(-1) end))
    assert.matches('size 1 must be a whole number, not 1.5', message_of(function() lumoe.zeros(1.5) end))
    assert.matches('at most 6 dims, not 7', message_of(function() lumoe.zeros(1, 1, 1, 1, 1, 1, 1) end))
    assert.matches('no memory', message_of(function() lumoe.zeros(2 ^ 40, 2 ^ 40) end))
    assert.matches('only f32 and bf16 have gradients',
      message_of(function() lumoe.zeros({ 1 }, { dtype = 'i32', requires_grad = true }) end))
  end)
end)

describe('views', function()
  local x

  before_each(function() x = lumoe.arange(24):float():reshape(2, 3, 4) end)

  it('share storage with their tensor', function()
    for name, view in pairs {
      select = x:select(1, 1), narrow = x:narrow(2, 1, 2), transpose = x:transpose(0, 2), permute = x:permute(1, 2, 0),
      reshape = x:reshape(6, 4), view = x:view(-1), expand = x:unsqueeze(0):expand(5, 2, 3, 4), detach = x:detach(),
      index = x[0], slice = x[{ {}, { 1, 3 } }], squeeze = x:unsqueeze(1):squeeze(1),
    } do assert.is_true(view:shares_storage(x), name) end
    assert.is_false(x:clone():shares_storage(x))
    assert.is_false(x:transpose(0, 1):reshape(6, 4):shares_storage(x)) -- no strides say that
    assert.is_true(x:transpose(0, 1):reshape(3, 2, 2, 2):shares_storage(x))
  end)

  it('see writes to each other', function()
    local t = x:transpose(0, 2)
    t[{ 1, 2, 0 }] = 100
    assert.equal(100, x[{ 0, 2, 1 }]:item())
  end)

  it('outlive their tensor', function()
    local kept = lumoe.scope(function() return (lumoe.ones(2, 3) * 5):transpose(0, 1) end)
    assert.same({ { 5, 5 }, { 5, 5 }, { 5, 5 } }, kept:totable())
  end)

  it('know whether they are contiguous', function()
    assert.is_true(x:is_contiguous())
    assert.is_false(x:transpose(0, 1):is_contiguous())
    assert.is_true(x:transpose(0, 1):contiguous():is_contiguous())
    assert.equal(12, x:stride(0))
    assert.equal(1, x:stride(-1))
    assert.matches('data_ptr: not contiguous', message_of(function() x:transpose(0, 1):data_ptr() end))
    assert.equal(7, ffi.cast('float *', x:data_ptr())[7])
  end)
end)

describe('indexing', function()
  local x

  before_each(function() x = lumoe.arange(12):float():reshape(3, 4) end)

  it('selects by numbers, from the end when negative', function()
    assert.same({ 4, 5, 6, 7 }, x[1]:totable())
    assert.same({ 8, 9, 10, 11 }, x[-1]:totable())
    assert.equal(6, x[1][2]:item())
    assert.equal(6, x[{ 1, -2 }]:item())
    assert.equal(3, #x)
  end)

  it('slices half-open', function()
    assert.same({ { 1, 2 }, { 5, 6 } }, x[{ { 0, 2 }, { 1, 3 } }]:totable())
    assert.same({ 2, 6, 10 }, x[{ {}, 2 }]:totable())
    assert.same({ { 10, 11 } }, x[{ { -1 }, { -2 } }]:totable())
    assert.same({ 0, 4 }, x[{ { 1, 1 } }]:size())
  end)

  it('assigns numbers and tensors that broadcast', function()
    x[0] = 7
    x[{ {}, { 2, 4 } }] = lumoe.tensor { { 1 }, { 2 }, { 3 } }
    assert.same({ { 7, 7, 1, 1 }, { 4, 5, 2, 2 }, { 8, 9, 3, 3 } }, x:totable())
    x[{ 1 }] = x[2]
    assert.same({ 8, 9, 3, 3 }, x[1]:totable())
  end)

  it('assigns overlapping slices as if copied first', function()
    local line = lumoe.arange(5):float()
    line[{ { 1, 5 } }] = line[{ { 0, 4 } }]
    assert.same({ 0, 0, 1, 2, 3 }, line:totable())
  end)

  it('names what is out of range', function()
    assert.matches('index 3 is out of range in dim 0 of %[3, 4%] f32', message_of(function() local _ = x[3] end))
    assert.matches('index %-4 is out of range', message_of(function() local _ = x[-4] end))
    assert.matches('slice {1, 9} of size 4 in dim 1', message_of(function() local _ = x[{ {}, { 1, 9 } }] end))
    assert.matches('copy: %[2%] f32 does not broadcast to %[4%] f32',
      message_of(function() x[0] = lumoe.zeros(2) end))
    for want, f in pairs {
      ['select: index must be a whole number, not 1.5'] = function() return x[1.5] end,
      ['select: index must be a whole number, not 0.5'] = function() return x[{ {}, 0.5 }] end,
      ['index: a slice is {from, to}, two numbers, not {1, 2, 3}'] = function() return x[{ { 1, 2, 3 } }] end,
      ['index: a slice is {from, to}, two numbers, not {a}'] = function() return x[{ { 'a' } }] end,
      ['narrow: start must be a whole number, not 0.5'] = function() return x[{ { 0.5, 2 } }] end,
      ['stride: dim 2 of a tensor with 2'] = function() return x:stride(2) end,
      ['stride: dim must be a whole number, not string'] = function() return x:stride 'a' end,
      ['where: cond must be a tensor, not nil'] = function() return lumoe.where() end,
      ['size: dim must be a whole number, not string'] = function() return x:size 'a' end,
      ['size: dim must be a whole number, not 0.5'] = function() return x:size(0.5) end,
      ['unsqueeze: dim must be a whole number, not nil'] = function() return x:unsqueeze() end,
    } do
      local message = message_of(function() local _ = f() end)
      assert.truthy(message and message:find(want, 1, true), message)
    end
    assert.matches("no field or method 'sofmax'", message_of(function() x:sofmax() end))
    assert.matches("field 'shape' cannot be set", message_of(function() x.shape = 3 end))
  end)
end)

describe('dtypes', function()
  it('convert, rounding to bf16 to nearest and floats to integers toward zero', function()
    local x = lumoe.tensor { 1.7, -1.7, 300, 1 + 2 ^ -9 }
    assert.same({ 1, -1, 300, 1 }, x:int():totable())
    assert.same({ 1, -1, 300, 1 }, x:long():totable())
    assert.same({ 1.703125, -1.703125, 300, 1 }, values(x:bfloat16()))
    assert.equal('bf16', x:to('bf16').dtype)
    assert.same({ 1, 0 }, lumoe.tensor({ 2, 0 }):to('u8'):totable())
    assert.equal(x, x:float()) -- already there: the same tensor
  end)

  it('promote as in PyTorch', function()
    local function of(dtype, size) return lumoe.ones(size or { 2 }, { dtype = dtype }) end
    assert.equal('f32', (of 'f32' + of 'bf16').dtype)
    assert.equal('bf16', (of 'bf16' + of 'i64').dtype)
    assert.equal('i64', (of 'i32' * of 'i64').dtype)
    assert.equal('f32', (of 'i32' / of 'i32').dtype)
    assert.equal('bf16', (of 'bf16' * of('f32', {})).dtype) -- a lone number follows
    assert.equal('i64', (of 'i64' + 1).dtype)
    assert.equal('f32', (of 'i64' + 0.5).dtype)
    assert.equal('bf16', (of 'bf16' * 0.5).dtype)
    assert.equal('u8', of('i32'):eq(1).dtype)
  end)

  it('keep integers whole beyond what floats hold', function()
    local x = lumoe.tensor({ 2 ^ 40, 3 }, { dtype = 'i64' })
    assert.same({ 2 ^ 40 + 1, 4 }, (x + 1):totable())
    assert.equal(2 ^ 40 + 3, x:sum():item())
  end)

  it('have an absolute value in integers too', function()
    local big = 2 ^ 53 - 1
    for _, dtype in ipairs { 'i32', 'i64' } do
      local y = lumoe.tensor({ { -3, 0 }, { 7, -100000 } }, { dtype = dtype }):t():abs()
      assert.same({ { 3, 7 }, { 0, 100000 } }, y:totable())
      assert.equal(dtype, y.dtype)
    end
    assert.equal(big, lumoe.tensor(-big, { dtype = 'i64' }):abs():item())
    assert.same({ 0, 200 }, lumoe.tensor({ 0, 200 }, { dtype = 'u8' }):abs():totable())
  end)

  it('compare with numbers between integers', function()
    assert.same({ 0, 1, 1 }, lumoe.tensor({ 1, 2, 3 }, { dtype = 'i32' }):gt(1.5):totable())
  end)
end)

describe('a tensor', function()
  it('gives its numbers', function()
    assert.same({ { 1, 2 }, { 3, 4 } }, lumoe.tensor({ { 1, 3 }, { 2, 4 } }):t():totable())
    assert.equal(4, lumoe.tensor(4):totable())
    assert.same({ {}, {} }, lumoe.zeros(2, 0):totable())
    assert.matches('item: %[2%] f32 has 2 elements, not 1', message_of(function() lumoe.zeros(2):item() end))
  end)

  it('prints shape, dtype and a shortened body', function()
    assert.equal('[[1.0000, 2.0000],\n [3.0000, 4.0000]]\ntensor [2, 2] f32', tostring(lumoe.tensor { { 1, 2 }, { 3, 4 } }))
    assert.equal('7\ntensor [] i64', tostring(lumoe.tensor(7, { dtype = 'i64' })))
    assert.equal('[]\ntensor [0] f32', tostring(lumoe.zeros(0)))
    local long = tostring(lumoe.arange(100))
    assert.matches('^%[ ?0,  ?1,  ?2,  ?3, …, 96, 97, 98, 99%]\ntensor %[100%] i64$', long)
    assert.matches('nan, +inf, +%-inf', tostring(lumoe.tensor { 0 / 0, 1 / 0, -1 / 0 }))
    assert.matches('requires_grad$', tostring(lumoe.zeros({ 1 }, { requires_grad = true })))
  end)

  it('leaves no views behind when printed', function()
    local x = lumoe.zeros(4, 4)
    collectgarbage() -- what the cases before left
    collectgarbage()
    local before = lumoe.memory().live.total
    local _ = tostring(x)
    assert.equal(before, lumoe.memory().live.total)
  end)

  it('equals itself, and is no equal of its copy', function()
    local x = lumoe.ones(2)
    assert.is_true(x == x)
    assert.is_false(x == x:clone())
    assert.not_equal(x:id(), x:clone():id())
  end)

  it('is written in place by copy_, fill_, zero_ and set_data', function()
    local x = lumoe.zeros(2, 2)
    assert.same({ { 1, 2 }, { 1, 2 } }, x:copy_(lumoe.tensor({ 1, 2 }, { dtype = 'i32' })):totable())
    assert.same({ { 3, 3 }, { 3, 3 } }, x:t():fill_(3):totable())
    assert.same({ { 0, 0 }, { 0, 0 } }, x:zero_():totable())
    local y = lumoe.ones({ 2, 2 }, { dtype = 'bf16' })
    x:set_data(y)
    assert.equal('bf16', x.dtype)
    assert.is_true(x:shares_storage(y))
    assert.matches('set_data: %[2, 2%] bf16 cannot become %[3%] f32', message_of(function() x:set_data(lumoe.ones(3)) end))
  end)

  it('is gone once disposed', function()
    local x = lumoe.ones(2)
    x:dispose()
    assert.equal('tensor (disposed)', tostring(x))
    assert.matches('add: the tensor was disposed', message_of(function() local _ = x + 1 end))
  end)
end)

describe('compiled code', function()
  it('computes what the interpreter computes', function()
    local function work()
      local x = lumoe.arange(12):float():reshape(3, 4)
      local total = 0
      for i = 1, 300 do
        lumoe.scope(function()
          local y = (x * i):softmax(-1):matmul(x:t()) - x[i % 3]:sum() / 7
          total = total + y:mean():item() + y:size(0) + (y[{ 1, { 0, 2 } }]:max():item())
        end)
      end
      return total
    end
    jit.off()
    local plain = work()
    jit.on()
    assert.equal(plain, work())
    assert.equal(plain, work())
  end)

  it('raises at the caller inside a trace too', function()
    local x = lumoe.zeros(3)
    local function reach(n) for i = 0, n do local _ = x[i % 3] + (i > 250 and x[i] or 0) end end
    assert.matches('index 251 is out of range', message_of(reach, 300))
  end)
end)
