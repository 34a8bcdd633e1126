--- Units, regions and where bytes are, in one process: what C promises before any rank divides anything.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local handle = require 'lumoe.handle'
local lumoe = require 'lumoe'
local status = require 'lumoe.status'

local check, pointer = status.check, handle.pointer

local function fails(pattern, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  assert.matches(pattern, message)
end

local function unit(name, stage, parameters)
  local out = ffi.new 'lm_unit *[1]'
  check(C.lm_unit_new(name, out))
  local u = ffi.gc(out[0], C.lm_unit_release)
  for key, p in pairs(parameters) do check(C.lm_unit_add(u, pointer(p), key, nil, stage)) end
  return u
end

local function parameter(values) return lumoe.tensor(values, { requires_grad = true }) end

local function enter(u, eager) check(C.lm_region_enter(u, eager == false and 0 or 1)) end
local function leave() check(C.lm_region_leave()) end

local function within(u, f)
  enter(u)
  local result = f()
  leave()
  return result
end

local function chunk(p)
  local out = ffi.new 'lm_tensor *[1]'
  check(C.lm_shard_chunk(pointer(p), out))
  return out[0] ~= nil and handle.own(out[0]) or nil
end

local function reduce(...) check(C.lm_shard_reduce(ffi.new('lm_unit *[?]', select('#', ...), { ... }), select('#', ...))) end

describe('a parameter at stage 3', function()
  it('is whole inside its unit alone, and a clear error elsewhere', function()
    local w = parameter { 1, 2, 3 }
    local u = unit('block', 3, { ['block.w'] = w })
    for _, use in ipairs { function() return w * 2 end, function() return w:totable() end, function() return w:sum() end,
      function() return w[0] end } do
      fails("parameter 'block.w' is not gathered: .* only while its unit 'block' runs", use)
    end
    fails('data_ptr: the bytes', function() return w:data_ptr() end)
    assert.same({ 2, 4, 6 }, within(u, function() return w * 2 end):totable())
    fails('not gathered', function() return w * 2 end)
    assert.same({ 3 }, w:shape_table()) -- its header is here
    assert.is_true(w.requires_grad)
    assert.is_nil(w.grad)
  end)

  it('gives its bytes back, and comes with them only when it is used', function()
    local w = lumoe.zeros({ 1024, 256 }, { requires_grad = true })
    local full = C.lm_memory_live(-1)
    local u = unit('u', 3, { w = w })
    assert.equal(full, C.lm_memory_live(-1)) -- a chunk of all, as this rank is alone
    enter(u, false)
    assert.equal(full, C.lm_memory_live(-1))
    local y = w[0]
    assert.equal(full + 4 * 1024 * 256, C.lm_memory_live(-1))
    assert.equal(0, y[3]:item())
    leave()
    assert.equal(full, C.lm_memory_live(-1))
    fails('not gathered', function() return y:sum() end) -- a view shares what is away
  end)

  it('is gathered again by backward, with views and saved values, though others moved in', function()
    local w, x = parameter { { 1, 2 }, { 3, 4 } }, parameter { { 5, 6 } }
    local u = unit('u', 3, { w = w })
    local loss = within(u, function()
      local row = w[1]                                 -- a view
      return (x:linear(w) * row):sum()
    end)
    local others = {}
    for i = 1, 8 do others[i] = lumoe.full({ 2, 2 }, 99) end
    loss:backward()
    assert.equal(8, #others)
    assert.equal(0, C.lm_unit_inside(u))
    assert.same({ { 3 * 1 + 4 * 3, 3 * 2 + 4 * 4 } }, x.grad:totable())
    assert.is_nil(w.grad) -- it went into the chunk
    -- y = x w^T = [17, 39]: d/dw = [3, 4]^T x, and row's own part [17, 39]
    assert.same({ 15, 18, 20 + 17, 24 + 39 }, chunk(w).grad:totable())
  end)

  it('does not count as changed when it comes and goes, but when it is updated', function()
    local w = parameter { 2, 3 }
    local u = unit('u', 3, { w = w })
    local function loss() return within(u, function() return (w * w):sum() end) end
    local first, second = loss(), loss()
    within(u, function() return w:sum() end)
    first:backward()
    assert.same({ 4, 6 }, chunk(w).grad:totable())
    lumoe.no_grad(function() chunk(w):copy_(lumoe.tensor { 5, 7 }) end)
    check(C.lm_shard_updated(pointer(w)))
    fails('changed in place', function() second:backward() end)
    assert.equal(0, C.lm_unit_inside(u))
    assert.same({ 5, 7 }, within(u, function() return w:totable() end))
  end)

  it('keeps what is written to it inside', function()
    local w = parameter { 1, 2 }
    local u = unit('u', 3, { w = w })
    within(u, function() lumoe.no_grad(function() w:copy_(lumoe.tensor { 8, 9 }) end) end)
    assert.same({ 8, 9 }, chunk(w):totable())
    assert.same({ 8, 9 }, within(u, function() return w:totable() end))
  end)

  it('becomes whole for good when its unit is dissolved', function()
    local w = parameter { 1, 2 }
    local u = unit('u', 3, { w = w })
    local view = within(u, function() return w[1] end)
    fails("set_data: parameter 'w' is divided", function() w:set_data(lumoe.zeros(2)) end)
    check(C.lm_unit_dissolve(u))
    assert.same({ 2, 4 }, (w * 2):totable())
    assert.equal(2, view:item())
    assert.is_nil(chunk(w))
  end)

  it('leaks nothing, whichever allocation fails, and can be used afterwards', function()
    local w, v = lumoe.ones({ 32 }, { requires_grad = true }), lumoe.ones({ 64 }, { requires_grad = true })
    local u = unit('u', 3, { w = w, v = v })
    local before, objects = C.lm_memory_live(-1), C.lm_memory_objects()
    local failed = 0
    for n = 1, 8 do
      C.lm_test_fail_alloc(n)
      local st = C.lm_region_enter(u, 1)
      C.lm_test_fail_alloc(0)
      if st < 0 then failed = failed + 1 else leave() end
      assert.equal(0, C.lm_unit_inside(u))
      assert.equal(before, C.lm_memory_live(-1))
      assert.equal(objects, C.lm_memory_objects())
    end
    assert.is_true(failed >= 3) -- the region, and both parameters
    assert.equal(96, within(u, function() return w:sum() + v:sum() end):item())
  end)
end)

describe('regions', function()
  it('nest, and a unit may be run twice', function()
    local a, b = parameter { 2 }, parameter { 3 }
    local outer, inner = unit('outer', 3, { a = a }), unit('inner', 3, { b = b })
    enter(outer)
    local x = a * 1
    for _ = 1, 2 do x = within(inner, function() return x * b end) * a end
    leave()
    local y = x:sum() -- outside of all
    fails('not gathered', function() return a + b end)
    y:backward()
    assert.equal(0, C.lm_unit_inside(outer) + C.lm_unit_inside(inner))
    assert.same({ 3 * 2 ^ 2 * 9 }, chunk(a).grad:totable()) -- a³ b²
    assert.same({ 2 ^ 3 * 2 * 3 }, chunk(b).grad:totable())
  end)

  it('hold a unit once for all that are open', function()
    local w = parameter { 1 }
    local u = unit('u', 3, { w = w })
    enter(u)
    enter(u)
    assert.equal(2, C.lm_unit_inside(u))
    leave()
    assert.equal(2, (w * 2):item())
    leave()
    fails('not gathered', function() return w * 2 end)
    fails('region: none is open', leave)
  end)

  it('are those of the node for a custom function, and for what it computes again', function()
    local w = parameter { 3 }
    local u = unit('u', 3, { w = w })
    local seen
    local twice = lumoe.custom {
      forward = function(ctx, x)
        ctx.x = x
        return x * 2
      end,
      backward = function(_, dy)
        seen = w:item()
        return dy * 2
      end,
    }
    local loss = within(u, function() return twice(w * w) end):sum()
    loss:backward()
    assert.equal(3, seen)
    assert.same({ 12 }, chunk(w).grad:totable())
  end)

  it('are left when backward fails, and the gradients that were on their way are dropped with the others', function()
    local a, b = parameter { 2 }, parameter { 3 }
    local first, second = unit('first', 3, { a = a }), unit('second', 3, { b = b })
    local slip = lumoe.custom {
      forward = function(_, x) return x end,
      backward = function() error('a slip', 0) end,
    }
    local function loss(between)
      local x = within(first, function() return between(a * a) end)
      return within(second, function() return x * b * b end):sum()
    end
    fails('a slip', function() loss(slip):backward() end)
    assert.equal(0, C.lm_unit_inside(first) + C.lm_unit_inside(second))
    fails('not gathered', function() return a + 1 end)
    a.grad, b.grad = nil, nil
    assert.is_nil(chunk(b).grad)
    loss(function(x) return x end):backward()
    reduce(first, second)
    assert.same({ 2 * 2 * 9 }, chunk(a).grad:totable())
    assert.same({ 2 * 3 * 4 }, chunk(b).grad:totable())
  end)

  it('cost a graph nothing when it is let go', function()
    local w = parameter { 1, 2 }
    local u = unit('u', 3, { w = w })
    collectgarbage()
    local objects = C.lm_memory_objects()
    lumoe.scope(function() within(u, function() return w * w end):sum() end)
    assert.equal(objects + 1, C.lm_memory_objects()) -- the leaf's own node stays with it
  end)
end)

describe('gradients of a unit', function()
  it('stay whole at stages 0 and 1, and are seen through the chunk at 1', function()
    for stage = 0, 1 do
      local w = parameter { 1, 2 }
      local u = unit('u', stage, { w = w })
      for _ = 1, 2 do within(u, function() return (w * w):sum() end):backward() end
      reduce(u)
      assert.same({ 4, 8 }, w.grad:totable())
      if stage == 0 then assert.is_nil(chunk(w))
      else assert.is_true(chunk(w).grad:shares_storage(w.grad)) end
      w.grad = nil
      assert.is_nil(stage == 1 and chunk(w).grad or nil)
    end
  end)

  it('are gone once they are in the chunk at stages 2 and 3, and add up there', function()
    for stage = 2, 3 do
      local w = parameter { 1, 2 }
      local u = unit('u', stage, { w = w })
      for round = 1, 3 do
        within(u, function() return (w * w):sum() end):backward()
        reduce(u)
        assert.is_nil(w.grad)
        assert.same({ 2 * round, 4 * round }, chunk(w).grad:totable())
      end
      w.grad = nil
      assert.is_nil(chunk(w).grad)
      reduce(u) -- nothing came: zeros
      assert.same({ 0, 0 }, chunk(w).grad:totable())
    end
  end)

  it('may not come after the last backward of a step', function()
    local w = parameter { 1, 2 }
    local u = unit('u', 1, { ['u.w'] = w })
    local function loss() return within(u, function() return (w * w):sum() end) end
    loss():backward()
    loss():backward { last = true }
    fails("a gradient of 'u.w' comes after its sum was sent", function() loss():backward() end)
    reduce(u)
    loss():backward { last = true }
    reduce(u)
    w.grad = nil
    loss():backward { last = true } -- the next step
    assert.same({ 2, 4 }, w.grad:totable())
  end)

  it('leave when nothing more can come, also for a parameter used elsewhere', function()
    local tied, own = parameter { 2 }, parameter { 3 }
    local outer, inner = unit('outer', 2, { tied = tied }), unit('inner', 2, { own = own })
    local seen
    local spy = lumoe.custom {
      forward = function(_, x) return x end,
      backward = function(_, dy)
        seen = { own = chunk(own).grad and chunk(own).grad:item(), tied = chunk(tied).grad and 'there' or tied.grad:item() }
        return dy
      end,
    }
    enter(outer)
    local x = within(inner, function() return spy(tied * 1) * own end) -- backward meets spy with own's already sent
    local y = x * tied
    leave()
    y:sum():backward()
    assert.is_nil(seen.own) -- inner still has tied * 1 to go through
    assert.equal(6, seen.tied)
    assert.same({ 4 }, chunk(own).grad:totable())
    assert.same({ 12 }, chunk(tied).grad:totable())
  end)
end)

describe('a step that runs out of memory', function()
  it('leaks nothing, wherever that happens, and the next one is right', function()
    for stage = 1, 3 do
      local w, v = parameter { 1, 2 }, parameter { 3, 4 }
      local u = unit('u', stage, { w = w, v = v })
      local function step()
        lumoe.scope(function() within(u, function() return (w * v * w):sum() end):backward { last = true } end)
        reduce(u)
      end
      local function clear() w.grad, v.grad = nil, nil end
      step()
      clear()
      collectgarbage()
      local live, objects = C.lm_memory_live(-1), C.lm_memory_objects()
      local failed = 0
      for n = 1, 40 do
        C.lm_test_fail_alloc(n)
        local ok = pcall(step)
        C.lm_test_fail_alloc(0)
        while C.lm_region_leave() == 0 do end -- `within` above does not leave when it fails
        if not ok then failed = failed + 1 end
        clear()
        collectgarbage()
        collectgarbage()
        assert.equal(0, C.lm_unit_inside(u))
        assert.equal(live, C.lm_memory_live(-1))
        assert.equal(objects, C.lm_memory_objects())
      end
      assert.is_true(failed >= 10)
      step()
      assert.same({ 6, 16 }, (chunk(w).grad or w.grad):totable())
    end
  end)
end)

describe('a unit', function()
  it('says what it cannot take', function()
    local w = parameter { 1, 2 }
    local u = unit('u', 1, { w = w })
    fails("shard: 'x': there is no stage 4", function() check(C.lm_unit_add(u, pointer(parameter { 1 }), 'x', nil, 4)) end)
    fails("'w' is in unit 'u' already", function() unit('v', 1, { w = w }) end)
    fails('not a whole contiguous tensor of its own', function() unit('v', 1, { x = lumoe.zeros(4)[{ { 1, 2 } }] }) end)
    enter(u)
    fails("unit 'u' is being run", function() check(C.lm_unit_add(u, pointer(parameter { 1 }), 'x', nil, 0)) end)
    leave()
  end)
end)
