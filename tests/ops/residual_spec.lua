--- x + dropout(h) and its norm in one pass, against the operations one by one.
local lumoe = require 'lumoe'

local function numbers(t) return t:float():flatten():totable() end

local function near(wanted, got, tolerance, what)
  assert.equal(#wanted, #got)
  for i = 1, #wanted do
    local close = math.abs(wanted[i] - got[i]) <= tolerance * (1 + math.abs(wanted[i])) -- false for NaN
    if not close then
      error(('%s: element %d is %.9g, wanted %.9g'):format(what, i - 1, got[i], wanted[i]), 2)
    end
  end
end

-- One of both ways from fresh leaves; `how` uses the sum, the norm or both.
local function way(one_pass, case)
  lumoe.manual_seed(5)
  local function leaf(...)
    local t = lumoe.randn(...):to(case.dtype)
    t.requires_grad = true
    return t
  end
  local shape, dim = case.shape, case.shape[#case.shape]
  local turned = case.turned and { shape[2], shape[1] }
  local h, x = leaf(turned or shape), leaf(turned or shape)
  local weight, bias = leaf(dim), leaf(dim)
  local from_h, from_x = h * 1, x * 1 -- not leaves: gradients are gathered on the way
  if turned then from_h, from_x = from_h:t(), from_x:t() end
  local sum, y
  if one_pass and case.rms then sum, y = from_h:dropout_add_rms_norm(from_x, weight, 1e-5, case.p, 3, 4, case.rows)
  elseif one_pass then sum, y = from_h:dropout_add_layer_norm(from_x, weight, bias, 1e-5, case.p, 3, 4, case.rows)
  else
    sum = from_x + from_h:dropout(case.p, 3, 4, case.rows)
    if case.rms then y = sum:rms_norm(weight, 1e-5) else y = sum:layer_norm(weight, bias, 1e-5) end
  end
  local wy, ws = lumoe.randn(shape), lumoe.randn(shape)
  local loss = from_x:float():sum() * 0.5
  if case.use ~= 'sum' then loss = loss + (y:float() * wy):sum() end
  if case.use ~= 'norm' then loss = loss + (sum:float() * ws):sum() end
  loss:backward()
  local function gradient(t) return t.grad and numbers(t.grad) or {} end
  return { sum = numbers(sum), norm = numbers(y), h = gradient(h), x = gradient(x), weight = gradient(weight), bias = gradient(bias) }
end

describe('a residual with its norm', function()
  for _, p in ipairs { 0, 0.1, 0.97, 1 } do
    for _, dtype in ipairs { 'f32', 'bf16' } do
      it(('is dropout, a sum and a norm, p = %g, %s'):format(p, dtype), function()
        for _, case in ipairs {
          { shape = { 7, 40 } }, { shape = { 3, 5, 17 }, rms = true }, { shape = { 130, 8 }, use = 'norm' },
          { shape = { 4, 33 }, use = 'sum' }, { shape = { 6, 11 }, turned = true }, { shape = { 5, 1 }, rms = true },
          { shape = { 3, 24 }, rows = lumoe.tensor({ 9, 2, 5 }, { dtype = 'i64' }) },
          { shape = { 0, 12 } }, { shape = { 2, 0 } },
        } do
          case.p, case.dtype = p, dtype
          lumoe.scope(function()
            local wanted, got = way(false, case), way(true, case)
            local exact, scale = dtype == 'f32', p < 1 and 1 / (1 - p) or 1
            for what, list in pairs(wanted) do
              local made = what == 'sum' or what == 'norm'
              local tolerance = exact and (what == 'sum' and 0 or 2e-6 * scale) or (made and 0.02 or 0.03) * math.max(4, scale)
              if case.shape[2] == 1 and not exact then tolerance = math.huge end -- signs of values near 0, no more
              near(list, got[what], tolerance, what)
            end
          end)
        end
      end)
    end
  end

  it('alone is dropout and a sum', function()
    for _, dtype in ipairs { 'f32', 'bf16' } do
      local x, h = lumoe.randn(9, 21):to(dtype), lumoe.randn(9, 21):to(dtype)
      x.requires_grad, h.requires_grad = true, true
      local y = h:dropout_add(x, 0.4, 1, 2)
      near(numbers(x + h:dropout(0.4, 1, 2)), numbers(y), dtype == 'f32' and 0 or 0.02, 'sum')
      y:backward { grad = lumoe.ones(9, 21):to(dtype) }
      near(numbers(lumoe.ones(9, 21):to(dtype):dropout(0.4, 1, 2)), numbers(h.grad), 0, 'h')
      near(numbers(lumoe.ones(9, 21)), numbers(x.grad), 0, 'x')
    end
  end)

  it('takes one tensor twice, and f32 beside bf16', function()
    local x = lumoe.randn({ 4, 6 }, { requires_grad = true })
    local sum, y = x:dropout_add_rms_norm(x, nil, 1e-6, 0, 0, 0)
    near(numbers(x * 2), numbers(sum), 0, 'sum')
    local loss = sum:sum() + y:sum() * 0
    loss:backward()
    near(numbers(lumoe.ones(4, 6) * 2), numbers(x.grad), 1e-6, 'gradient')
    assert.equal('f32', (x:to 'bf16':dropout_add(x, 0, 0, 0)).dtype)
  end)

  it('refuses ids that are not one to a row', function()
    local ok, message = pcall(function()
      return lumoe.zeros(2, 3):dropout_add_layer_norm(lumoe.zeros(2, 3), nil, nil, 0, 0.5, 0, 0, lumoe.zeros({ 3 }, { dtype = 'i64' }))
    end)
    assert.is_false(ok)
    assert.matches('dropout_add_layer_norm: %[2, 3%] f32 has 2 rows, but their ids are %[3%] i64', message)
  end)

  it('is freed with the tape, whichever allocation fails', function()
    local C = require 'lumoe.ffi'
    local x = lumoe.randn({ 3, 8 }, { requires_grad = true })
    x:sum():backward()
    local function step()
      lumoe.scope(function()
        local sum, y = (x * 1):dropout_add_layer_norm(x * 1, nil, nil, 1e-5, 0.5, 0, 0)
        local loss = (sum + y):sum()
        loss:backward()
      end)
    end
    step()
    collectgarbage()
    local before, failed = C.lm_memory_live(-1), 0
    for n = 1, 200 do
      C.lm_test_fail_alloc(n)
      local ok = pcall(step)
      C.lm_test_fail_alloc(0)
      assert.equal(before, C.lm_memory_live(-1))
      if ok then break end
      failed = failed + 1
    end
    assert.is_true(failed > 5)
  end)
end)
