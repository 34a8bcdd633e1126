local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'

local function leaf(list) return lumoe.tensor(list, { requires_grad = true }) end

local function fails(pattern, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  assert.matches(pattern, message)
end

describe('backward', function()
  it('adds what comes in bf16 to the gradient in f32, an operand met twice and a view included', function()
    for _, dtype in ipairs { 'f32', 'bf16' } do
      local x = lumoe.randn({ 3, 5 }, { dtype = dtype })
      x.requires_grad = true
      local dy = lumoe.randn({ 3, 5 }, { dtype = dtype })
      local n = dy:float():flatten():totable();
      (x + x):backward { grad = dy };  -- 2 dy
      (x - x):backward { grad = dy };   -- 0
      (x * 1):backward { grad = dy };   -- dy
      x:transpose(0, 1):mul(1):transpose(0, 1):backward { grad = dy }
      for i, g in ipairs(x.grad:flatten():totable()) do assert.near(4 * n[i], g, 1e-5) end
      assert.equal('f32', x.grad.dtype)
    end
  end)

  it('accumulates into leaves, over calls and over uses', function()
    local x = leaf { 1, 2, 3 }
    local y = x * x + x
    y:sum():backward()
    assert.same({ 3, 5, 7 }, x.grad:totable())
    ;(x * 2):sum():backward()
    assert.same({ 5, 7, 9 }, x.grad:totable())
    x.grad = nil
    assert.is_nil(x.grad)
    local g = lumoe.ones(3)
    x.grad = g
    x:sum():backward()
    assert.same({ 2, 2, 2 }, x.grad:totable())
  end)

  it('takes a gradient for what is not one number', function()
    local x = leaf { 1, 2 }
    ;(x * 3):backward { grad = lumoe.tensor { 1, 10 } }
    assert.same({ 3, 30 }, x.grad:totable())
    fails('backward: %[2%] f32 is not a single number', function() (x * 3):backward() end)
    fails('backward: gradient is %[3%] f32, but the tensor is %[2%] f32',
      function() (x * 3):backward { grad = lumoe.ones(3) } end)
    fails('autograd_spec.lua:%d+: no_grad: wants a function, not nil', function() lumoe.no_grad() end)
    fails('autograd_spec.lua:%d+: scope: wants a function, not a number', function() lumoe.scope(3) end)
    fails("backward: unknown option 'retain'", function() (x * 3):sum():backward { retain = true } end)
  end)

  it('flows through views and sums over what was broadcast', function()
    local x = leaf { { 1, 2 }, { 3, 4 } }
    ;(x:t()[0] * lumoe.tensor { 10, 20 }):sum():backward()
    assert.same({ { 10, 0 }, { 20, 0 } }, x.grad:totable())
    local b = leaf { 1 }
    ;(lumoe.ones(2, 3) * b):sum():backward()
    assert.same({ 6 }, b.grad:totable())
  end)

  it('adds up pieces of what was computed, overlapping ones and those that keep no dim', function()
    for _, dtype in ipairs { 'f32', 'bf16' } do
      local x = leaf { { 1, 2 }, { 3, 4 }, { 5, 6 }, { 7, 8 } }
      local y = (x * 1):to(dtype)
      local loss = (y:narrow(0, 0, 3) * 2):sum() + y[{ { 1, 4 }, 0 }]:sum() + (y[2] * 5):sum() + y:sum()
      loss:backward()
      assert.same({ { 3, 3 }, { 4, 3 }, { 9, 8 }, { 2, 1 } }, x.grad:totable())
    end
  end)

  it('refuses what no gradient reaches', function()
    fails('backward: nothing that this was computed from requires a gradient',
      function() (lumoe.ones(1) * 2):backward() end)
    local x = leaf { 1 }
    fails('requires a gradient', function() (x:detach() * 2):backward() end)
    fails('requires a gradient', function() x:int():float():backward() end)
  end)

  it('twice wants retain_graph the first time', function()
    local x = leaf { 3 }
    local y = x:square():sum()
    y:backward { retain_graph = true }
    y:backward()
    assert.same({ 12 }, x.grad:totable())
    fails('backward: %w+ was gone through before.*retain_graph', function() y:backward() end)
    assert.same({ 12 }, x.grad:totable())
  end)

  it('notices what was changed in place since', function()
    local x = leaf { 1, 2 }
    local factor = lumoe.tensor { 5, 6 }
    local y = (x * factor):sum()
    factor[0] = 7
    fails('backward of mul: a tensor it needs was changed in place since', function() y:backward() end)
    assert.is_nil(x.grad)
    local z = x:exp()
    local through_view = z:detach()
    through_view[{ { 0, 1 } }] = 0
    fails('backward of exp', function() z:sum():backward() end)
  end)

  it('refuses in-place writes to what requires a gradient', function()
    local x = leaf { 1, 2 }
    fails('in%-place write to a tensor that requires a gradient', function() x[0] = 3 end)
    fails('in%-place write', function() x:zero_() end)
    lumoe.no_grad(function() x[0] = 3 end)
    assert.same({ 3, 2 }, x:totable())
  end)

  it('goes on when the user has dropped everything but the loss', function()
    local before
    local x = leaf { 1, 2, 3 }
    x:sum():backward() -- the gradient is there
    before = C.lm_memory_live(-1)
    lumoe.scope(function()
      local loss = lumoe.scope(function() return ((x * 2):exp() * (x + 1)):sum() end)
      loss:backward()
    end)
    assert.equal(before, C.lm_memory_live(-1))
    for i, v in ipairs { 1, 2, 3 } do
      assert.near(1 + math.exp(2 * v) * (2 * (v + 1) + 1), x.grad[i - 1]:item(), 1e-2)
    end
  end)

  it('frees what each step saved as soon as it is done', function()
    local x = lumoe.zeros({ 2 ^ 16 }, { requires_grad = true })
    lumoe.scope(function()
      local y = lumoe.scope(function()
        local z = x
        for _ = 1, 20 do z = z:exp() * 0.1 end
        return z:sum()
      end)
      lumoe.reset_peak_memory()
      local start = lumoe.memory().live.total
      y:backward()
      assert.is_true(lumoe.memory().peak.total - start < 6 * 2 ^ 18, 'gradients pile up')
    end)
  end)

  it('gives bf16 leaves an f32 gradient', function()
    local x = lumoe.ones({ 3 }, { dtype = 'bf16', requires_grad = true })
    ;(x * 2):sum():backward()
    assert.equal('f32', x.grad.dtype)
    assert.same({ 2, 2, 2 }, x.grad:totable())
  end)

  it('reaches leaves that are used in f32 and bf16', function()
    local x = leaf { 1, 2 }
    ;(x:bfloat16() * x):sum():backward()
    assert.same({ 2, 4 }, x.grad:totable())
  end)

  it('starts at a leaf too', function()
    local x = leaf { 2 }
    x:backward()
    assert.same({ 1 }, x.grad:totable())
  end)
end)

describe('a chain of 100000 nodes', function()
  local function chain(x)
    local y = x
    for i = 1, 100 do
      y = lumoe.scope(function()
        local z = y
        for _ = 1, 1000 do z = z + 1 end
        return z
      end)
      if i % 10 == 0 then collectgarbage() end
    end
    return y
  end

  it('is freed without recursion', function()
    local x = leaf { 0 }
    collectgarbage()
    collectgarbage()
    local objects = C.lm_memory_objects()
    lumoe.scope(function() assert.same({ 100000 }, chain(x):totable()) end)
    collectgarbage()
    collectgarbage()
    assert.is_true(C.lm_memory_objects() <= objects + 1) -- the leaf's node
  end)

  it('is walked without recursion', function()
    local x = leaf { 0 }
    lumoe.scope(function() chain(x):sum():backward() end)
    assert.same({ 1 }, x.grad:totable())
  end)
end)

describe('no_grad', function()
  it('records nothing, nests, returns values and survives errors', function()
    local x = leaf { 1 }
    local y, z = lumoe.no_grad(function()
      lumoe.no_grad(function() end)
      return x * 2, 5
    end)
    assert.is_false(y.requires_grad)
    assert.equal(5, z)
    fails('oops', lumoe.no_grad, function() error 'oops' end)
    assert.is_true((x * 2).requires_grad)
  end)
end)

describe('requires_grad', function()
  it('is for leaves of floats', function()
    local x = leaf { 1 }
    fails('the tensor was computed', function() (x * 2).requires_grad = false end)
    fails('only f32 and bf16 have gradients', function() lumoe.ones({ 1 }, { dtype = 'i64' }).requires_grad = true end)
    assert.is_true(x.is_leaf)
    assert.is_false((x * 2).is_leaf)
    x.requires_grad = false
    assert.is_false((x * 2).requires_grad)
  end)

  it('wants gradients of the shape of their tensor', function()
    local x = leaf { 1, 2 }
    fails('grad: %[3%] f32 cannot be the gradient of %[2%] f32', function() x.grad = lumoe.ones(3) end)
  end)
end)

describe('a custom function', function()
  local cube = lumoe.custom {
    name = 'cube',
    forward = function(ctx, x)
      ctx.x = x
      return x * x * x
    end,
    backward = function(ctx, dy) return dy * ctx.x * ctx.x * 3 end,
  }

  it('has the backward that it is given', function()
    local x = leaf { 1, 2 }
    ;(cube(x) * 2):sum():backward()
    assert.same({ 6, 24 }, x.grad:totable())
    assert.is_false(cube(lumoe.ones(2)).requires_grad)
  end)

  it('keeps what its context holds across scopes, and lets it go afterwards', function()
    local x = leaf { 1, 2 }
    x:sum():backward()
    collectgarbage()
    collectgarbage()
    local before = C.lm_memory_live(-1)
    lumoe.scope(function()
      local y = lumoe.scope(function() return cube(x * 1):sum() end)
      y:backward()
    end)
    assert.same({ 4, 13 }, x.grad:totable())
    collectgarbage()
    collectgarbage()
    assert.equal(before, C.lm_memory_live(-1))
  end)

  it('takes and gives several tensors, nil where there is no gradient', function()
    local got
    local swap = lumoe.custom {
      forward = function(_, a, _, b) return b * 1, a * 1 end,
      backward = function(_, da, db)
        got = { da, db }
        return db, da
      end,
    }
    local a, b = leaf { 1 }, leaf { 2 }
    local p, _ = swap(a, 'not a tensor', b)
    p:sum():backward()
    assert.is_nil(got[2])
    assert.same({ 1 }, b.grad:totable())
    assert.is_nil(a.grad)
  end)

  it('may run backward inside its backward, as recomputation does', function()
    local again = lumoe.custom {
      forward = function(ctx, x)
        ctx.x = x
        return x:exp()
      end,
      backward = function(ctx, dy)
        local x = ctx.x:detach():clone()
        x.requires_grad = true
        local recording = C.lm_grad_set_enabled(1)
        local y = cube(x) * 0 + x:exp() -- a custom function in it, too
        C.lm_grad_set_enabled(recording)
        y:backward { grad = dy }
        return x.grad
      end,
    }
    local x = leaf { 0.5, 1 }
    ;(again(again(x)) * 2):sum():backward()
    for i, v in ipairs { 0.5, 1 } do
      assert.near(2 * math.exp(math.exp(v)) * math.exp(v), x.grad[i - 1]:item(), 1e-3)
    end
  end)

  it('that fails ends the walk, and the next one works', function()
    local bad = lumoe.custom {
      forward = function(_, x) return x * 1 end,
      backward = function() error 'no idea' end,
    }
    local x = leaf { 1 }
    fails('no idea', function() bad(x):sum():backward() end)
    fails('no idea', function() (cube(bad(x)) * bad(x)):sum():backward() end)
    assert.equal(0, C.lm_backward_custom())
    x.grad = nil
    cube(x):sum():backward()
    assert.same({ 3 }, x.grad:totable())
    assert.is_true((x * 1).requires_grad) -- recording is on again
  end)

  it('is told what is wrong with what it gives', function()
    local wrong = lumoe.custom {
      name = 'wrong',
      forward = function(_, x) return x * 1 end,
      backward = function() return lumoe.ones(5) end,
    }
    local x = leaf { 1, 2 }
    fails('backward of .*: gradient %[5%] f32 for an input of %[2%]', function() wrong(x):sum():backward() end)
    local number = lumoe.custom { forward = function(_, v) return v * 1 end, backward = function() return 7 end }
    fails('gradient 1 must be a tensor, not 7', function() number(x):sum():backward() end)
    fails('result 1 is no tensor', lumoe.custom { forward = function() return 7 end, backward = function() end }, x)
    local more = lumoe.custom { forward = function(_, v) return v * 1 end, backward = function(_, dy) return dy, dy end }
    fails('custom function backward: gradient 2, but forward had only 1 tensor$', function() more(x):sum():backward() end)
    assert.is_nil(x.grad)
    local nothing_more = lumoe.custom { forward = function(_, v) return v * 1 end, backward = function(_, dy) return dy, nil end }
    nothing_more(x):sum():backward()
    assert.same({ 1, 1 }, x.grad:totable())
    fails('autograd_spec.lua:%d+: custom: wants .* forward is nil', function() lumoe.custom() end)
    fails('custom: wants .* backward is number', function() lumoe.custom { forward = print, backward = 3 } end)
    fails("custom: unknown option 'backwards'", lumoe.custom, { forward = 1, backwards = 2 })
  end)

  it('may return its argument, or a view of it', function()
    local same = lumoe.custom { forward = function(_, x) return x end, backward = function(_, dy) return dy * 5 end }
    local x = leaf { 1, 2 }
    same(x):sum():backward()
    assert.same({ 5, 5 }, x.grad:totable())
    assert.is_true(x.is_leaf)
  end)
end)
