--- Tensors: creation, indexing, operators, printing, gradients. Names are PyTorch's.
--
-- Dims, positions and ids count from 0, negative from the end; Lua tables count from 1.
-- Sizes can be given as numbers or as one table: `zeros(2, 3)`, `zeros({2, 3}, {dtype = 'bf16'})`.
-- Every operation of runtime/ops.def is a method (bind.lua); this file adds what reads better by hand.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local bind = require 'lumoe.bind'
local handle = require 'lumoe.handle'
local status = require 'lumoe.status'

local pointer, own, check, ops = handle.pointer, handle.own, status.check, bind.ops
local istype, handle_t = ffi.istype, handle.type

---@class lumoe.Tensor
local Tensor = setmetatable({}, { __index = ops })
local tensor = { methods = Tensor }

--- The methods, with all those that nobody has asked for yet.
function tensor.all_methods()
  for op in pairs(bind.signatures) do
    if rawget(Tensor, op) == nil then Tensor[op] = ops[op] end
  end
  return Tensor
end

-- ---- arguments ----------------------------------------------------------------------------

local DTYPE = { f32 = C.LM_F32, bf16 = C.LM_BF16, i32 = C.LM_I32, i64 = C.LM_I64, u8 = C.LM_U8 }
local NAME = {}
for name, number in pairs(DTYPE) do NAME[number] = name end
local ctype = { f32 = 'float', i32 = 'int32_t', i64 = 'int64_t', u8 = 'uint8_t' }

local function dtype_of(name, op)
  local number = DTYPE[name]
  if not number then
    status.argument("%s: no dtype '%s'; there are f32 bf16 i32 i64 u8", op, tostring(name))
  end
  return number
end

local RANGE = { u8 = { 0, 255 }, i32 = { -2 ^ 31, 2 ^ 31 - 1 }, i64 = { -2 ^ 63, 2 ^ 63 } }

-- Raises where an integer dtype would hold another number than the one given: 300 in u8 is 44.
local function fits(value, dtype, op)
  local range = RANGE[dtype]
  if range and not (value >= range[1] and value <= range[2]) then
    status.argument('%s: %s does not fit in %s, which holds %.0f to %.0f', op, tostring(value), dtype, range[1], range[2])
  end
end

--- Raises if `opts` has a key that is not in `known`, or is no table.
local function options(opts, known, op)
  if opts == nil then return {} end
  if type(opts) ~= 'table' then status.argument('%s: options must be a table, not %s', op, type(opts)) end
  for key in pairs(opts) do
    if not known[key] then status.argument("%s: unknown option '%s'", op, tostring(key)) end
  end
  return opts
end
tensor.options = options

local CREATE = { dtype = true, requires_grad = true }
local shape_buffer = ffi.new('int64_t[?]', 64)

-- The i-th size into shape_buffer.
local function put(op, i, size)
  if type(size) ~= 'number' or size ~= math.floor(size) then
    status.argument('%s: size %d must be a whole number, not %s', op, i, tostring(size))
  end
  shape_buffer[i - 1] = size
end

-- Written out: a trace does not like loops of two or three turns.
local function put_all(op, n, a, b, c, d, e, f)
  if n > 6 then status.argument('%s: at most 6 dims, not %d', op, n) end
  if n > 0 then put(op, 1, a) end
  if n > 1 then put(op, 2, b) end
  if n > 2 then put(op, 3, c) end
  if n > 3 then put(op, 4, d) end
  if n > 4 then put(op, 5, e) end
  if n > 5 then put(op, 6, f) end
  return n
end

-- Reads `2, 3` or `{2, 3}` into shape_buffer; returns the count and what follows the sizes.
local function sizes(op, first, ...)
  if type(first) == 'table' then
    return put_all(op, #first, first[1], first[2], first[3], first[4], first[5], first[6]), (...)
  end
  if first == nil then return 0 end
  local n, last = 1 + select('#', ...), select(-1, first, ...)
  if type(last) == 'table' then return put_all(op, n - 1, first, ...), last end
  return put_all(op, n, first, ...), nil
end
tensor.sizes = sizes

local out = ffi.new 'lm_tensor *[1]'
local function result(st)
  if st < 0 then status.raise() end
  return own(out[0])
end

local function finish(t, opts)
  if opts.requires_grad then check(C.lm_tensor_set_requires_grad(pointer(t), 1)) end
  return t
end

-- ---- creation -----------------------------------------------------------------------------

local function full(op, value, ...)
  local n, opts = sizes(op, ...)
  opts = options(opts, CREATE, op)
  fits(value, opts.dtype, op)
  return finish(result(C.lm_tensor_full(dtype_of(opts.dtype or 'f32', op), n, shape_buffer, value, out)), opts)
end

--- Zeros of the given sizes. Options: dtype = 'f32', requires_grad = false (so for all of these).
function tensor.zeros(...) return full('zeros', 0, ...) end
function tensor.ones(...) return full('ones', 1, ...) end
--- `full({2, 3}, 7)`
function tensor.full(size, value, opts)
  if type(value) ~= 'number' then status.argument('full: the value must be a number, not %s', type(value)) end
  return full('full', value, size, opts)
end
--- Contents are undefined.
function tensor.empty(...)
  local n, opts = sizes('empty', ...)
  opts = options(opts, CREATE, 'empty')
  return finish(result(C.lm_tensor_new(dtype_of(opts.dtype or 'f32', 'empty'), n, shape_buffer, out)), opts)
end
function Tensor:zeros_like() return tensor.zeros(self:shape_table(), { dtype = self.dtype }) end
function Tensor:ones_like() return tensor.ones(self:shape_table(), { dtype = self.dtype }) end

--- `arange(stop)`, `arange(start, stop)`, `arange(start, stop, step)`, then options. i64 when all
-- are whole, as in PyTorch.
function tensor.arange(...)
  local a = { ... }
  local opts = options(type(a[#a]) == 'table' and table.remove(a) or nil, CREATE, 'arange')
  for i = 1, #a do
    if type(a[i]) ~= 'number' then status.argument('arange: wants numbers, not %s', type(a[i])) end
  end
  if #a < 1 or #a > 3 then status.argument('arange: wants stop; start, stop; or start, stop, step; not %d numbers', #a) end
  local start, stop, step = a[2] and a[1] or 0, a[2] or a[1] or 0, a[3] or 1
  if step == 0 then status.argument('arange: step is 0') end
  local whole = start % 1 == 0 and stop % 1 == 0 and step % 1 == 0
  local count = math.max(0, math.ceil((stop - start) / step))
  local dtype = dtype_of(opts.dtype or (whole and 'i64' or 'f32'), 'arange')
  return finish(result(C.lm_tensor_arange(dtype, start, step, count, out)), opts)
end

-- Sizes of a nested table, checked to be a box while its numbers are written.
local function flatten(value, depth, shape, dtype, store, at)
  if type(value) ~= 'table' then
    if depth <= #shape then status.argument('tensor: dim %d is a number in one place, a table in another', depth - 1) end
    if type(value) == 'boolean' then value = value and 1 or 0 end
    if type(value) ~= 'number' then status.argument('tensor: holds %s, wants numbers', type(value)) end
    fits(value, dtype, 'tensor')
    store[at] = value
    return at + 1
  end
  if depth > #shape then status.argument('tensor: dim %d is a number in one place, a table in another', depth - 1) end
  if #value ~= shape[depth] then
    status.argument('tensor: dim %d has %d elements in one place, %d in another', depth - 1, shape[depth], #value)
  end
  for i = 1, #value do at = flatten(value[i], depth + 1, shape, dtype, store, at) end
  return at
end

--- A tensor from a (nested) table or a number. Options: dtype = 'f32', requires_grad.
function tensor.tensor(value, opts)
  opts = options(opts, CREATE, 'tensor')
  local dtype = opts.dtype or 'f32'
  dtype_of(dtype, 'tensor')
  local shape, v, count = {}, value, 1
  while type(v) == 'table' do
    shape[#shape + 1], count, v = #v, count * #v, v[1]
  end
  local kind = dtype == 'bf16' and 'f32' or dtype
  local store = ffi.new(ctype[kind] .. '[?]', math.max(count, 1))
  flatten(value, 1, shape, dtype, store, 0)
  local t = tensor.from(store, shape, { dtype = kind })
  if dtype == 'bf16' then t = t:to 'bf16' end
  return finish(t, opts)
end

local POINTER = {}
for name, c in pairs(ctype) do POINTER[name] = ffi.typeof(c .. ' *') end

-- Raises where C would read what is not there: no array or pointer, NULL, or an array that is too short.
local function check_source(cdata, dtype, dims)
  if istype(POINTER[dtype] or POINTER.f32, cdata) and cdata ~= nil then return end -- the usual, without a word
  local kind = type(cdata) == 'cdata' and tostring(ffi.typeof(cdata)) or type(cdata)
  if not kind:find '^ctype<.*[%*%[]' then status.argument('from: wants an FFI array or pointer, not %s', kind) end
  if cdata == nil then status.argument 'from: the pointer is NULL' end
  if kind:find('*', 1, true) then return end -- whoever has a pointer knows what is there
  local bytes = dtype == 'bf16' and 2 or ffi.sizeof(ctype[dtype])
  for d = 0, dims - 1 do bytes = bytes * tonumber(shape_buffer[d]) end
  if ffi.sizeof(cdata) < bytes then
    status.argument('from: the array has %d bytes, a tensor of these sizes %d', ffi.sizeof(cdata), bytes)
  end
end

--- Copies an FFI array (or pointer) of the dtype's C type into a tensor of `size`.
function tensor.from(cdata, size, opts)
  opts = options(opts, CREATE, 'from')
  if size == nil then status.argument 'from: wants sizes' end
  local dtype = opts.dtype or 'f32'
  local n = sizes('from', size)
  if DTYPE[dtype] then check_source(cdata, dtype, n) end
  return finish(result(C.lm_tensor_from(dtype_of(dtype, 'from'), n, shape_buffer, cdata, out)), opts)
end

-- ---- facts --------------------------------------------------------------------------------

function Tensor:dim() return C.lm_tensor_ndim(pointer(self, 'dim', 'self')) end
function Tensor:numel() return C.lm_tensor_numel(pointer(self, 'numel', 'self')) end

-- A dim counted from 0, of one that may be counted from the end.
local function dim_of(p, dim, op)
  if type(dim) ~= 'number' or dim % 1 ~= 0 then
    status.argument('%s: dim must be a whole number, not %s', op, type(dim) == 'number' and tostring(dim) or type(dim))
  end
  local n = C.lm_tensor_ndim(p)
  local d = dim < 0 and dim + n or dim
  if d < 0 or d >= n then status.argument('%s: dim %d of a tensor with %d', op, dim, n) end
  return d
end

--- The size of one dim (negative from the end), or all of them as a table.
function Tensor:size(dim)
  local p = pointer(self, 'size', 'self')
  if not dim then return self:shape_table() end
  return C.lm_tensor_size(p, dim_of(p, dim, 'size'))
end

function Tensor:shape_table()
  local p = pointer(self, 'shape', 'self')
  local n = C.lm_tensor_ndim(p)
  if n == 1 then return { C.lm_tensor_size(p, 0) } end -- written out, as above
  if n == 2 then return { C.lm_tensor_size(p, 0), C.lm_tensor_size(p, 1) } end
  if n == 3 then return { C.lm_tensor_size(p, 0), C.lm_tensor_size(p, 1), C.lm_tensor_size(p, 2) } end
  local list = {}
  for d = 0, n - 1 do list[d + 1] = C.lm_tensor_size(p, d) end
  return list
end

function Tensor:stride(dim)
  local p = pointer(self, 'stride', 'self')
  return C.lm_tensor_stride(p, dim_of(p, dim, 'stride'))
end
function Tensor:is_contiguous() return C.lm_tensor_is_contiguous(pointer(self, 'is_contiguous', 'self')) == 1 end
function Tensor:id() return C.lm_tensor_id(pointer(self, 'id', 'self')) end
function Tensor:shares_storage(other)
  return C.lm_tensor_shares_storage(pointer(self, 'shares_storage', 'self'), pointer(other, 'shares_storage', 'other')) == 1
end

--- void* to the first element of a contiguous tensor.
function Tensor:data_ptr()
  local p = pointer(self, 'data_ptr', 'self')
  if C.lm_tensor_is_contiguous(p) == 0 then status.argument('data_ptr: not contiguous; use x:contiguous()') end
  local data = C.lm_tensor_data(p)
  if data == nil then status.argument('data_ptr: the bytes of the tensor are not here; see dist.gathered') end
  return data
end

local number_out = ffi.new 'double[1]'

--- The value of a tensor of one element.
function Tensor:item()
  local p = pointer(self, 'item', 'self')
  if C.lm_tensor_numel(p) ~= 1 then status.argument('item: %s has %d elements, not 1', tensor.describe(self), C.lm_tensor_numel(p)) end
  check(C.lm_tensor_get(p, 0, number_out))
  return number_out[0]
end

--- Nested Lua tables of its numbers; a number for a tensor without dims.
function Tensor:totable()
  local p = pointer(self, 'totable', 'self')
  local n, shape = C.lm_tensor_numel(p), self:shape_table()
  local values, at = ffi.new('double[?]', math.max(n, 1)), -1
  check(C.lm_tensor_read(p, values, n))
  local function build(depth)
    if depth > #shape then
      at = at + 1
      return values[at]
    end
    local list = {}
    for i = 1, shape[depth] do list[i] = build(depth + 1) end
    return list
  end
  return build(1)
end

function tensor.is_tensor(x) return istype(handle_t, x) end

--- "[2, 3] f32"
function tensor.describe(t)
  return ('[%s] %s'):format(table.concat(t:shape_table(), ', '), t.dtype)
end

-- ---- dtype, shape -------------------------------------------------------------------------

function Tensor:to(dtype) return ops.to_dtype(self, dtype_of(dtype, 'to')) end
function Tensor:float() return self:to 'f32' end
function Tensor:bfloat16() return self:to 'bf16' end
function Tensor:int() return self:to 'i32' end
function Tensor:long() return self:to 'i64' end

local function shaped(name)
  local op = C['lm_' .. name]
  Tensor[name] = function(self, ...)
    local p = pointer(self, name, 'self')
    local n = sizes(name, ...)
    return result(op(p, n, shape_buffer, out))
  end
end
shaped 'reshape'
shaped 'permute'
shaped 'expand'
Tensor.view = Tensor.reshape -- a view whenever strides allow it
function Tensor:flatten() return self:reshape(-1) end
function Tensor:t() return self:transpose(0, 1) end
function Tensor:expand_as(other) return self:expand(other:shape_table()) end

--- Pieces of `size` (a number, the last may be smaller; or a table of sizes) along dim.
function Tensor:split(size, dim)
  dim = dim or 0
  local total, pieces, at = self:size(dim), {}, 0
  if type(size) == 'table' then
    for i, s in ipairs(size) do pieces[i], at = self:narrow(dim, at, s), at + s end
    if at ~= total then status.argument('split: pieces of %d do not fill %d', at, total) end
    return pieces
  end
  if type(size) ~= 'number' or size < 1 then status.argument('split: size must be a number from 1, or a table') end
  while at < total do
    pieces[#pieces + 1] = self:narrow(dim, at, math.min(size, total - at))
    at = at + size
  end
  return pieces
end

local function list_of(list, op)
  if type(list) ~= 'table' or #list == 0 then status.argument('%s: wants a table of tensors', op) end
  local array = ffi.new('lm_tensor *[?]', #list)
  for i = 1, #list do array[i - 1] = pointer(list[i], op, ('list[%d]'):format(i)) end
  return array, #list
end
tensor.list_of = list_of

--- Joins tensors along a dim that is there.
function tensor.cat(list, dim)
  local array, n = list_of(list, 'cat')
  return result(C.lm_cat(array, n, dim or 0, out))
end

--- Joins tensors of one shape along a new dim.
function tensor.stack(list, dim)
  local wide = {}
  list_of(list, 'stack')
  for i = 1, #list do wide[i] = list[i]:unsqueeze(dim or 0) end
  return tensor.cat(wide, dim or 0)
end

-- ---- operators ----------------------------------------------------------------------------

local function as_tensor(value, like, op)
  if istype(handle_t, value) then return value end
  if type(value) ~= 'number' then status.argument('%s: wants a tensor or a number, not %s', op, type(value)) end
  local dtype = like.dtype
  if value % 1 ~= 0 and dtype ~= 'bf16' then dtype = 'f32' end
  return tensor.tensor(value, { dtype = dtype })
end

-- a op b where either may be a number.
function Tensor.add(a, b)
  if type(b) == 'number' then return ops.add_scalar(a, b) end
  if type(a) == 'number' then return ops.add_scalar(b, a) end
  return ops.add(a, b)
end
function Tensor.sub(a, b)
  if type(b) == 'number' then return ops.add_scalar(a, -b) end
  if type(a) == 'number' then return ops.rsub_scalar(b, a) end
  return ops.sub(a, b)
end
function Tensor.mul(a, b)
  if type(b) == 'number' then return ops.mul_scalar(a, b) end
  if type(a) == 'number' then return ops.mul_scalar(b, a) end
  return ops.mul(a, b)
end
function Tensor.div(a, b)
  if type(b) == 'number' then return ops.div_scalar(a, b) end
  if type(a) == 'number' then return ops.rdiv_scalar(b, a) end
  return ops.div(a, b)
end
function Tensor.pow(a, b)
  if type(b) == 'number' then return ops.pow_scalar(a, b) end
  if type(a) == 'number' then return ops.rpow_scalar(b, a) end
  return ops.pow(a, b)
end

local metatable = {
  __add = Tensor.add, __sub = Tensor.sub, __mul = Tensor.mul, __div = Tensor.div, __pow = Tensor.pow,
  __unm = function(x) return ops.neg(x) end,
}

function Tensor.maximum(a, b) return ops.maximum(a, as_tensor(b, a, 'maximum')) end
function Tensor.minimum(a, b) return ops.minimum(a, as_tensor(b, a, 'minimum')) end

-- Comparisons are methods: Lua's operators can only return booleans.
for name, number in pairs { eq = C.LM_EQ, ne = C.LM_NE, lt = C.LM_LT, le = C.LM_LE, gt = C.LM_GT, ge = C.LM_GE } do
  Tensor[name] = function(a, b) return ops.compare(a, as_tensor(b, a, name), number) end
end

--- a where cond, b elsewhere; either may be a number.
function tensor.where(cond, a, b)
  pointer(cond, 'where', 'cond')
  local like = istype(handle_t, a) and a or istype(handle_t, b) and b or cond:float()
  return ops.where(cond, as_tensor(a, like, 'where'), as_tensor(b, like, 'where'))
end

function Tensor:clamp(lo, hi) return ops.clamp(self, lo or -math.huge, hi or math.huge) end

-- Without a dim: over everything.
function Tensor.sum(x, dim, keepdim)
  if dim == nil then return ops.sum_all(x) end
  return ops.sum(x, dim, keepdim)
end
function Tensor.mean(x, dim, keepdim)
  if dim == nil then return ops.mean_all(x) end
  return ops.mean(x, dim, keepdim)
end
for _, name in ipairs { 'max', 'min', 'argmax', 'argmin' } do
  Tensor[name] = function(x, dim, keepdim)
    if dim == nil then return (ops[name](x:flatten(), 0)) end
    return ops[name](x, dim, keepdim)
  end
end

-- Without a dim: all that are 1.
function Tensor:squeeze(dim)
  if dim ~= nil then return ops.squeeze(self, dim) end
  local kept = {}
  for _, n in ipairs(self:shape_table()) do
    if n ~= 1 then kept[#kept + 1] = n end
  end
  return self:reshape(kept)
end

-- ---- indexing -----------------------------------------------------------------------------

local function listed(list)
  local words = {}
  for i = 1, #list do words[i] = tostring(list[i]) end
  return table.concat(words, ', ')
end

-- x[{ 1, {a, b}, {} }]: a number selects, {a, b} is the half-open slice, {} takes all.
local function slice(x, spec)
  local dim = 0
  for i = 1, #spec do
    local at = spec[i]
    if type(at) == 'number' then
      x = x:select(dim, at)
    elseif type(at) == 'table' then
      local size = x:size(dim)
      local from, to = at[1] or 0, at[2] or size
      if #at > 2 or type(from) ~= 'number' or type(to) ~= 'number' then
        status.argument('index: a slice is {from, to}, two numbers, not {%s}', listed(at))
      end
      if from < 0 then from = from + size end
      if to < 0 then to = to + size end
      if from < 0 or to > size or from > to then
        status.argument('index: slice {%s, %s} of size %d in dim %d', tostring(at[1]), tostring(at[2]), size, i - 1)
      end
      x = x:narrow(dim, from, to - from)
      dim = dim + 1
    else
      status.argument('index: position %d must be a number or {from, to}, not %s', i, type(at))
    end
  end
  return x
end

local getters = {
  dtype = function(x) return NAME[C.lm_tensor_dtype(pointer(x, 'dtype', 'self'))] end,
  shape = function(x) return x:shape_table() end,
  requires_grad = function(x) return C.lm_tensor_requires_grad(pointer(x, 'requires_grad', 'self')) == 1 end,
  is_leaf = function(x) return C.lm_tensor_is_leaf(pointer(x, 'is_leaf', 'self')) == 1 end,
  grad_dtype = function(x) return NAME[C.lm_tensor_grad_dtype(pointer(x, 'grad_dtype', 'self'))] end,
  grad = function(x)
    check(C.lm_tensor_grad(pointer(x, 'grad', 'self'), out))
    if out[0] == nil then return nil end
    return own(out[0])
  end,
}

tensor.fields = getters

function metatable.__index(x, key)
  local method = rawget(Tensor, key)
  if method then return method end
  local kind = type(key)
  if kind == 'number' then return x:select(0, key) end
  if kind == 'table' then return slice(x, key) end
  local get = getters[key]
  if get then return get(x) end
  method = ops[key]
  if method then
    Tensor[key] = method
    return method
  end
  status.argument("a tensor has no field or method '%s'", tostring(key))
end

function metatable.__newindex(x, key, value)
  local kind = type(key)
  if kind == 'number' or kind == 'table' then
    local view = kind == 'number' and x:select(0, key) or slice(x, key)
    if type(value) == 'number' then view:fill_(value)
    else check(C.lm_tensor_copy(pointer(view), pointer(value, 'assignment', 'value'))) end
  elseif key == 'requires_grad' then
    check(C.lm_tensor_set_requires_grad(pointer(x, key, 'self'), value and 1 or 0))
  elseif key == 'grad_dtype' then
    check(C.lm_tensor_set_grad_dtype(pointer(x, key, 'self'), dtype_of(value, key)))
  elseif key == 'grad' then
    check(C.lm_tensor_set_grad(pointer(x, key, 'self'), value ~= nil and pointer(value, key, 'value') or nil))
  else
    status.argument("a tensor's field '%s' cannot be set", tostring(key))
  end
end

function metatable.__len(x) return x:size(0) end

--- In place: src broadcasts to self.
function Tensor:copy_(src)
  check(C.lm_tensor_copy(pointer(self, 'copy_', 'self'), pointer(src, 'copy_', 'src')))
  return self
end
function Tensor:fill_(value)
  if type(value) ~= 'number' then status.argument('fill_: the value must be a number, not %s', type(value)) end
  if value ~= 0 then fits(value, self.dtype, 'fill_') end
  check(C.lm_tensor_fill(pointer(self, 'fill_', 'self'), value))
  return self
end
function Tensor:zero_() return self:fill_(0) end
--- Takes over the storage of src, of the same shape: the handle stays, the bytes (and dtype) change.
function Tensor:set_data(src)
  check(C.lm_tensor_set_data(pointer(self, 'set_data', 'self'), pointer(src, 'set_data', 'src')))
  return self
end
--- Drops the data now; later use of this handle is an error.
function Tensor:dispose()
  C.lm_tensor_dispose(pointer(self, 'dispose', 'self'))
end

-- ---- printing -----------------------------------------------------------------------------

local EDGE = 4 -- elements shown at each end of a long dim

local function number_text(v, whole)
  if v ~= v then return 'nan' end
  if v == math.huge then return 'inf' elseif v == -math.huge then return '-inf' end
  if whole then return ('%d'):format(v) end
  local a = math.abs(v)
  if a ~= 0 and (a < 1e-4 or a >= 1e6) then return ('%.3e'):format(v) end
  return ('%.4f'):format(v)
end

local function shown(n) -- positions of a dim that are printed; false stands for what is left out
  local list = {}
  for i = 0, n - 1 do
    if n <= 2 * EDGE + 2 or i < EDGE or i >= n - EDGE then list[#list + 1] = i
    elseif i == EDGE then list[#list + 1] = false end
  end
  return list
end

-- Nested tables of texts, and the width of the longest: columns line up in the whole tensor.
local function texts(x, whole)
  if x:dim() == 0 then
    local text = number_text(x:item(), whole)
    return text, #text
  end
  local list, width = {}, 0
  for _, i in ipairs(shown(x:size(0))) do
    local inner, w = '…', 0
    if i then inner, w = texts(x:select(0, i), whole) end
    list[#list + 1], width = inner, math.max(width, w)
  end
  return list, width
end

local function layout(list, width, indent)
  local parts, last = {}, type(list[1]) ~= 'table'
  for i, inner in ipairs(list) do
    parts[i] = type(inner) == 'table' and layout(inner, width, indent .. ' ')
      or inner == '…' and inner or (' '):rep(width - #inner) .. inner
  end
  return '[' .. table.concat(parts, last and ', ' or ',\n' .. indent .. ' ') .. ']'
end

function metatable.__tostring(x)
  if not handle.alive(x) then return 'tensor (gone)' end
  local grad = x.requires_grad and ', requires_grad' or ''
  local depth = C.lm_scope_enter() -- the views made to print go with this scope
  local ok, text = pcall(function()
    if x:numel() == 0 then return '[]' end
    local list, width = texts(x:detach(), not x.dtype:find 'f')
    return type(list) == 'table' and layout(list, width, '') or list
  end)
  if depth > 0 then C.lm_scope_leave() end
  if not ok and text:find('was disposed', 1, true) then return 'tensor (disposed)' end
  return ('%s\ntensor %s%s'):format(text, ok and tensor.describe(x) or '', grad)
end

-- Two handles are equal when they lead to one tensor.
function metatable.__eq(a, b)
  if not (istype(handle_t, a) and istype(handle_t, b)) then return false end
  if a.slot == b.slot then return a.gen == b.gen end
  return handle.alive(a) and handle.alive(b) and pointer(a) == pointer(b)
end

ffi.metatype(handle_t, metatable)

return tensor
