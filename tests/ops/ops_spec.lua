--- Every case of cases.lua: values, gradients, strided inputs, bf16, empty sizes, errors, lost allocations.
local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'
local cases = require 'tests.ops.cases'
local naive = require 'tests.ops.naive'

local F32_VALUE, F32_GRADIENT = 1e-5, 1e-4
local BF16_STEP = 2 ^ -8 -- of a value in [1, 2) to its neighbour, halved by rounding

-- ---- inputs -------------------------------------------------------------------------------

local function is_float(spec) return not (spec.ids or spec.mask) end
local function shape_of(spec) return type(spec[1]) == 'table' and spec[1] or not is_float(spec) and spec[1] or spec end

--- Reproducible tensors for a set of arguments; ids alternate between i64 and i32.
local function make(case, set, dtype)
  local random, tensors = naive.generator(7919 + #case.name), {}
  for i, spec in ipairs(set) do
    local range = spec.range or case.range or { -2, 2 }
    local array = naive.build(shape_of(spec), function()
      if spec.ids then return math.floor(random(0, spec.ids)) end
      if spec.mask then return random(0, 1) < 0.6 and 1 or 0 end
      return random(range[1], range[2])
    end)
    local kind = spec.ids and (i % 2 == 0 and 'i64' or 'i32') or spec.mask and 'u8' or dtype or 'f32'
    local flat = lumoe.zeros({ #array.data }, { dtype = kind })
    if #array.data > 0 then flat = lumoe.tensor(array.data, { dtype = kind }) end
    tensors[i] = flat:reshape(array.shape)
  end
  return tensors
end

local function arrays(tensors)
  local list = {}
  for i, t in ipairs(tensors) do list[i] = naive.from(t) end
  return list
end

--- The loss that gradients are taken of: the result's elements, each with a weight of its own.
local function weights(count)
  local random, list = naive.generator(104729), {}
  for i = 1, count do list[i] = random(0.5, 1.5) * (i % 2 == 0 and -1 or 1) end
  return list
end

local function weighted(array)
  local sum = 0
  for i, w in ipairs(weights(#array.data)) do sum = sum + w * array.data[i] end
  return sum
end

local function backward(y)
  if y:numel() == 0 then return y:sum():backward() end
  local w = lumoe.tensor(weights(y:numel())):reshape(y:size()):to(y.dtype)
  y:backward { grad = w }
end

-- ---- comparing ----------------------------------------------------------------------------

local function assert_shape(wanted, got) assert.same(wanted, got) end

local function assert_near(wanted, got, relative, absolute, what)
  assert_shape(wanted.shape, got.shape)
  for i = 1, naive.numel(wanted.shape) do
    local a, b = wanted.data[i], got.data[i]
    local near = math.abs(a - b) <= relative * math.abs(a) + absolute -- false for NaN
    if not near then
      error(('%s: element %d is %.9g, wanted %.9g'):format(what, i - 1, b, a), 2)
    end
  end
end

local function largest(array)
  local top = 0
  for _, v in ipairs(array.data) do top = math.max(top, math.abs(v)) end
  return top
end

--- The gradient of one argument by central differences through the reference.
local function differences(case, args, which)
  local x, h = args[which], 1e-5
  return naive.build(x.shape, (function()
    local i = 0
    return function()
      i = i + 1
      local kept = x.data[i]
      x.data[i] = kept + h
      local above = weighted(case.ref(unpack(args)))
      x.data[i] = kept - h
      local below = weighted(case.ref(unpack(args)))
      x.data[i] = kept
      return (above - below) / (2 * h)
    end
  end)())
end

local function leaves(tensors)
  for _, t in ipairs(tensors) do
    if t.dtype == 'f32' or t.dtype == 'bf16' then t.requires_grad = true end
  end
  return tensors
end

local function each_set(case, f)
  for _, set in ipairs(case.inputs) do lumoe.scope(function() f(set) end) end
end

-- ---- inputs that are views ----------------------------------------------------------------

-- Each: from a contiguous tensor, another that holds it, and the way to see it there.
local views = {
  transposed = function(x)
    local last = x:dim() - 1
    if last < 1 then return nil end
    return x:transpose(0, last):contiguous(), function(base) return base:transpose(0, last) end
  end,
  narrowed = function(x)
    if x:dim() == 0 then return nil end
    local last = x:dim() - 1
    local filler = x:narrow(last, 0, math.min(1, x:size(last)))
    local wide = lumoe.cat({ filler, x, filler }, last)
    return wide, function(base) return base:narrow(last, filler:size(last), x:size(last)) end
  end,
  expanded = function(x)
    if x:dim() == 0 or x:size(0) == 0 then return nil end
    local size = x:size()
    return x:narrow(0, 0, 1):contiguous(), function(base) return base:expand(size) end
  end,
}

local function seen(tensors, view)
  local bases, viewed, any = {}, {}, false
  for i, t in ipairs(tensors) do
    local base, see = views[view](t)
    bases[i] = (base or t):detach()
    if base then any = true end
    bases[i] = leaves({ bases[i] })[1]
    viewed[i] = see and see(bases[i]) or bases[i]
  end
  return any and viewed or nil, bases
end

-- ---- the specs ----------------------------------------------------------------------------

local function spec_of_values(case)
  it('gives what the reference gives', function()
    each_set(case, function(set)
      local tensors = make(case, set)
      local args = arrays(tensors)
      local y = case.call(unpack(tensors))
      local tolerance = case.exact and 0 or case.tolerance or F32_VALUE
      assert_near(case.ref(unpack(args)), naive.from(y), tolerance, tolerance, case.name)
      assert.equal(case.result or 'f32', y.dtype)
      for i, t in ipairs(tensors) do assert.same(args[i], naive.from(t)) end -- the inputs are as before
    end)
  end)
end

local function spec_of_gradients(case)
  it('has the gradient of central differences', function()
    each_set(case, function(set)
      local tensors = leaves(make(case, set))
      backward(case.call(unpack(tensors)))
      local args = arrays(tensors)
      for i, t in ipairs(tensors) do
        if t.requires_grad then
          local wanted = differences(case, args, i)
          local scale = math.max(1, largest(wanted)) * (case.tolerance and case.tolerance / F32_VALUE or 1)
          assert_near(wanted, naive.from(t.grad or t:zeros_like()), F32_GRADIENT, F32_GRADIENT * scale,
            ('%s, gradient of argument %d'):format(case.name, i))
        end
      end
    end)
  end)
end

local function spec_of_views(case, view)
  it('takes inputs that are ' .. view, function()
    each_set(case, function(set)
      local viewed, bases = seen(make(case, set), view)
      if not viewed then return end
      local y = case.call(unpack(viewed))
      local tolerance = case.exact and 0 or case.tolerance or F32_VALUE
      assert_near(case.ref(unpack(arrays(viewed))), naive.from(y), tolerance, tolerance, case.name)
      if case.exact then return end
      -- Its gradient is that of contiguous inputs, sent back through the view.
      local plain = {}
      for i, t in ipairs(viewed) do plain[i] = t:detach():clone() end
      backward(case.call(unpack(leaves(plain))))
      backward(y)
      for i, base in ipairs(bases) do
        if base.requires_grad then
          local _, see = views[view](plain[i]:detach())
          local other = leaves({ base:detach():clone() })[1]
          local through = see and see(other) or other
          through:backward { grad = plain[i].grad or plain[i]:detach():zeros_like() }
          assert_near(naive.from(other.grad), naive.from(base.grad or base:detach():zeros_like()), 1e-5,
            1e-5 * math.max(1, largest(naive.from(other.grad))), case.name .. ', gradient')
        end
      end
    end)
  end)
end

local function spec_of_bf16(case)
  it('takes bf16', function()
    each_set(case, function(set)
      local tensors = leaves(make(case, set, 'bf16'))
      local args = arrays(tensors)
      local y = case.call(unpack(tensors))
      assert.equal(case.result or 'bf16', y.dtype)
      local wanted = case.ref(unpack(args))
      local size = largest(wanted)
      assert_near(wanted, naive.from(y), case.exact and 0 or BF16_STEP * (case.loose or 4) / 4,
        case.exact and 0 or 1e-4 + size * BF16_STEP / 4, case.name)
      if case.exact then return end
      backward(y)
      local exact = {} -- the same numbers in f32
      for i, t in ipairs(tensors) do exact[i] = t.dtype == 'bf16' and t:detach():float() or t end
      local again = case.call(unpack(leaves(exact)))
      local w = lumoe.tensor(weights(again:numel())):reshape(again:size()):to(y.dtype):float()
      again:backward { grad = w }
      for i, t in ipairs(tensors) do
        if t.requires_grad then
          local g = naive.from(exact[i].grad or exact[i]:detach():zeros_like())
          assert_near(g, naive.from(t.grad or t:detach():zeros_like()), 0,
            (case.loose or 4) * BF16_STEP * math.max(largest(g), 1e-3), case.name .. ', gradient')
        end
      end
    end)
  end)
end

local function spec_of_empty(case)
  it('takes empty sizes', function()
    for _, set in ipairs(case.empty) do
      lumoe.scope(function()
        local tensors = leaves(make(case, set))
        local y = case.call(unpack(tensors))
        assert_near(case.ref(unpack(arrays(tensors))), naive.from(y), F32_VALUE, F32_VALUE, case.name)
        if case.exact then return end
        backward(y)
        for _, t in ipairs(tensors) do
          if t.grad then assert_shape(t:size(), t.grad:size()) end
        end
      end)
    end
  end)
end

local function spec_of_errors(case)
  for n, wrong in ipairs(case.errors) do
    it(('says what is wrong, where it was called (%d)'):format(n), function()
      local before = C.lm_memory_live(-1)
      local ok, message = pcall(lumoe.scope, wrong[1])
      assert.is_false(ok)
      -- (a tail call leaves no frame: then the caller is this spec)
      assert.matches('^tests/ops/[%w_]+%.lua:%d+: ' .. wrong[2], message)
      assert.equal(before, C.lm_memory_live(-1))
    end)
  end
end

local function spec_of_allocations(case)
  it('leaks nothing, whichever allocation fails', function()
    lumoe.scope(function()
      local tensors = leaves(make(case, case.inputs[1]))
      local args = arrays(tensors)
      local w = lumoe.no_grad(function()
        local y = case.call(unpack(tensors))
        return case.exact and y or lumoe.tensor(weights(y:numel())):reshape(y:size())
      end)
      local function run()
        lumoe.scope(function()
          local y = case.call(unpack(tensors))
          if not case.exact then y:backward { grad = w } end
        end)
        for _, t in ipairs(tensors) do if t.requires_grad then t.grad = nil end end
      end
      run() -- leaf nodes, caches
      local bytes, objects = C.lm_memory_live(-1), C.lm_memory_objects()
      local failures = 0
      for n = 1, 400 do
        C.lm_test_fail_alloc(n)
        local ok, message = pcall(run)
        C.lm_test_fail_alloc(0)
        for _, t in ipairs(tensors) do if t.requires_grad then t.grad = nil end end
        assert.equal(bytes, C.lm_memory_live(-1), ('allocation %d failed: bytes'):format(n))
        assert.equal(objects, C.lm_memory_objects(), ('allocation %d failed: objects'):format(n))
        if ok then break end
        assert.matches('no memory', message)
        failures = n
      end
      assert.is_true(failures > 0 and failures < 400, 'no allocation failed, or all did')
      for i, t in ipairs(tensors) do assert.same(args[i], naive.from(t)) end
    end)
  end)
end

for _, case in ipairs(cases) do
  describe(case.name, function()
    spec_of_values(case)
    if not case.exact then spec_of_gradients(case) end
    if case.views ~= false then
      for view in pairs(views) do spec_of_views(case, view) end
    end
    if case.bf16 ~= false then spec_of_bf16(case) end
    if case.empty then spec_of_empty(case) end
    if case.errors then spec_of_errors(case) end
    spec_of_allocations(case)
  end)
end

describe('the whole set of operations', function()
  it('leaves no memory behind', function()
    collectgarbage()
    collectgarbage()
    local bytes, objects = C.lm_memory_live(-1), C.lm_memory_objects()
    for _, case in ipairs(cases) do
      each_set(case, function(set)
        local y = case.call(unpack(leaves(make(case, set))))
        if not case.exact then backward(y) end
      end)
    end
    collectgarbage()
    collectgarbage()
    assert.equal(bytes, C.lm_memory_live(-1))
    assert.equal(objects, C.lm_memory_objects())
  end)

  it('is tested: every operation of ops.def has a case', function()
    local covered = table.concat((function()
      local names = {}
      for i, case in ipairs(cases) do names[i] = case.name end
      return names
    end)(), '\n')
    local elsewhere = { dropout = true, detach = true, compare = true, square = true, neg = true, cached_attention = true } -- their own specs
    for op in pairs(require('lumoe.bind').signatures) do
      local plain = op:gsub('_all$', ''):gsub('_scalar$', ''):gsub('^r?(%w+)_scalar$', '%1')
      if not elsewhere[op] and not op:find '_scalar' and op ~= 'scaled_dot_product_attention'
        and op ~= 'to_dtype' then
        assert.is_truthy(covered:find(plain, 1, true), 'no case for ' .. op)
      end
    end
  end)
end)
