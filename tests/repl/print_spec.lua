local ffi = require 'ffi'
local pretty = require 'repl.print'

describe('repl.print', function()
  local show = pretty.show

  it('tells strings from numbers', function()
    assert.equal('1', show(1))
    assert.equal("'1'", show('1'))
    assert.equal('nil', show(nil))
    assert.equal('12LL', show(12LL))
  end)

  it('escapes what would not be seen, and keeps UTF-8', function()
    assert.equal([['a\0b\n\t\027\\']], show('a\0b\n\t\27\\'))
    assert.equal([["it's"]], show("it's"))
    assert.equal([['it\'s "so"']], show([[it's "so"]]))
    assert.equal("'žluť 日本 😀'", show('žluť 日本 😀'))
    assert.equal([['\255é\128']], show('\255é\128'))
    assert.equal([['\195']], show('\195'))
    assert.equal(loadstring('return ' .. show('\1\0012\r"\''))(), '\1\0012\r"\'')
  end)

  it('shortens long strings', function()
    assert.equal("'xxxx' … 10 bytes in all", show(('x'):rep(10), { string = 4 }))
    assert.equal("'é' … 6 bytes in all", show('ééé', { string = 3 })) -- never half a character
  end)

  it('shows sequences, then keys in order', function()
    assert.equal('{}', show {})
    assert.equal("{ 1, 2, a = 'x', b = true, ['end'] = 3 }", (show { 1, 2, b = true, a = 'x', ['end'] = 3 }))
    assert.equal("{ [0] = 'zero', [2.5] = 'half', [true] = 1 }", show { [0] = 'zero', [2.5] = 'half', [true] = 1 })
  end)

  it('has limits of depth, of entries and of width', function()
    assert.equal('{ { {…} } }', show({ { { 1 } } }, { depth = 2 }))
    assert.equal('{ 1, 2, … 3 more }', show({ 1, 2, 3, 4, 5 }, { items = 2 }))
    local narrow = { width = 20 }
    assert.equal("{\n  first = 'aaaa',\n  second = 'bbbb'\n}", show({ first = 'aaaa', second = 'bbbb' }, narrow))
    assert.equal('{\n  1000, 2000,\n  3000, 4000\n}', show({ 1000, 2000, 3000, 4000 }, { width = 16 }))
    local wide = { 1 }
    for _ = 1, 20 do wide = { wide, wide, wide, wide } end
    assert.is_true(#show(wide, { depth = 30 }) < 100000) -- 4^20 leaves, were they all shown
  end)

  it('ends where a table holds itself', function()
    local t = { name = 'loop' }
    t.self = t
    assert.equal("{ name = 'loop', self = <cycle> }", show(t))
    local shared = {  1 }
    assert.equal('{ { 1 }, { 1 } }', show { shared, shared })
  end)

  it('uses a tostring of the value, its first line inside a table', function()
    local value = setmetatable({}, { __tostring = function() return 'tensor [2]\n1 2' end })
    assert.equal('tensor [2]\n1 2', show(value))
    assert.equal('{ tensor [2] … }', show { value })
    ffi.cdef 'typedef struct { int x; } lumoe_print_spec;'
    local point = ffi.metatype('lumoe_print_spec', { __tostring = function(p) return 'point ' .. p.x end })
    assert.equal('point 4', show(point(4)))
  end)

  it('shows where a function comes from', function()
    assert.matches('^function%(x, y, %.%.%.%) .*print_spec.lua:%d+$', show(function(x, y, ...) return x, y, ... end))
    assert.equal('function string.rep', show(string.rep))
  end)
end)
