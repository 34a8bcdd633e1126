local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'

local function live() return C.lm_memory_live(-1) end

-- live() when nothing is left that the collector may take at any time.
local function settled()
  collectgarbage()
  collectgarbage()
  return live()
end

describe('a scope', function()
  it('drops what it made, and gives its memory back at once', function()
    local before, objects, leaked = settled(), C.lm_memory_objects(), nil
    lumoe.scope(function()
      for _ = 1, 100 do leaked = lumoe.ones(1000) + 1 end
      assert.is_true(live() - before >= 100 * 4000)
    end)
    assert.equal(before, live())
    assert.equal(objects, C.lm_memory_objects())
    assert.equal('tensor (gone)', tostring(leaked))
  end)

  it('hands out what it returns, also in tables and through inner scopes', function()
    local a, t = lumoe.scope(function()
      return lumoe.ones(2), lumoe.scope(function() return { x = lumoe.ones(3), deep = { lumoe.ones(4) } } end)
    end)
    assert.same({ 1, 1 }, a:totable())
    assert.same({ 1, 1, 1 }, t.x:totable())
    assert.same({ 1, 1, 1, 1 }, t.deep[1]:totable())
  end)

  it('hands what it returns to the scope around it', function()
    local before, inner, outer = settled(), nil, nil
    lumoe.scope(function()
      outer = lumoe.ones(5)
      inner = lumoe.scope(function()
        return lumoe.scope(function() return lumoe.ones(4), outer end)
      end)
      for _ = 1, 10 do local _ = lumoe.scope(function() return lumoe.ones(3), lumoe.ones(2) end) + 1 end
      assert.same({ 1, 1, 1, 1 }, inner:totable())
      assert.same({ 1, 1, 1, 1, 1 }, outer:totable())
    end)
    assert.equal('tensor (gone)', tostring(inner))
    assert.equal('tensor (gone)', tostring(outer))
    assert.equal(before, live()) -- without the collector
  end)

  it('spares what is kept', function()
    local kept, list
    lumoe.scope(function()
      kept = lumoe.keep(lumoe.ones(2))
      list = lumoe.keep { lumoe.ones(1), { lumoe.ones(3) } }
    end)
    assert.equal(2, kept:numel())
    assert.equal(3, list[2][1]:numel())
  end)

  it('leaves what was there before, and writes to it', function()
    local x = lumoe.zeros(2)
    lumoe.scope(function() x:copy_(lumoe.ones(2)) end)
    assert.same({ 1, 1 }, x:totable())
  end)

  it('is left by errors, which pass through as they are', function()
    local before = settled()
    local thrown = {}
    local ok, err = pcall(lumoe.scope, function()
      lumoe.scope(function()
        local _ = lumoe.ones(1000)
        error(thrown)
      end)
    end)
    assert.is_false(ok)
    assert.equal(thrown, err)
    assert.equal(0, C.lm_scope_depth())
    assert.equal(before, live())
  end)

  it('nests, but not without end', function()
    local function nest(n) return lumoe.scope(function() if n > 1 then return nest(n - 1) end return C.lm_scope_depth() end) end
    assert.equal(60, nest(60))
    local ok, message = pcall(nest, 65)
    assert.is_false(ok)
    assert.matches('scope: more than 64 inside each other', message)
    assert.equal(0, C.lm_scope_depth())
  end)
end)

describe('a handle', function()
  it('that is stale is an error that says why', function()
    local stale
    lumoe.scope(function() stale = lumoe.ones(2) end)
    for name, use in pairs {
      method = function() stale:exp() end, field = function() local _ = stale.dtype end,
      operator = function() local _ = 1 + stale end, index = function() local _ = stale[0] end,
      argument = function() local _ = lumoe.ones(2) + stale end, item = function() stale:totable() end,
    } do
      local ok, message = pcall(use)
      assert.is_false(ok, name)
      assert.matches('^tests/runtime/handle_spec.lua:%d+: %l+: the tensor is gone: its scope ended', message)
    end
  end)

  it('stays stale when its slot is used again', function()
    local stale
    lumoe.scope(function() stale = lumoe.ones(2) end)
    local others = {}
    for i = 1, 50 do others[i] = lumoe.full({ 2 }, i) end
    assert.is_false(pcall(stale.totable, stale))
    for i = 1, 50 do assert.same({ i, i }, others[i]:totable()) end
  end)

  it('outside scopes is freed by the collector', function()
    local before, objects = settled(), C.lm_memory_objects()
    for _ = 1, 50 do local _ = lumoe.ones(100):exp() end
    assert.equal(before, settled())
    assert.equal(objects, C.lm_memory_objects())
  end)

  it('outside scopes makes the collector run before memory piles up', function()
    for _ = 1, 600 do local _ = lumoe.empty(2 ^ 20) end -- 2.5 GB in all
    assert.is_true(live() < 1.2e9)
  end)

  it('may be dropped in any order with what it is a view of', function()
    local before = settled()
    lumoe.scope(function()
      local x = lumoe.ones(10)
      local y = x[{ { 2, 5 } }]
      x:dispose()
      assert.same({ 1, 1, 1 }, y:totable())
    end)
    assert.equal(before, live())
  end)
end)
