--- What the prompt does with tensors.
local lumoe = require 'lumoe'
local complete = require 'repl.complete'
local help = require 'repl.help'
local pretty = require 'repl.print'

describe('a tensor at the prompt', function()
  local x = lumoe.zeros { 2, 3 }

  it('shows shape, dtype and a body', function()
    local text = pretty.show(x)
    assert.matches('%[2, 3%]', text)
    assert.matches('f32', text)
    assert.matches('0', text)
  end)

  it('is named by shape and dtype inside a table', function()
    assert.equal('{ weight = tensor [2, 3] f32 }', pretty.show { weight = x })
    local gone
    lumoe.scope(function() gone = lumoe.zeros { 2 } end)
    assert.equal('{ tensor (gone) }', pretty.show { gone })
  end)

  it('shows a shortened body when it is large', function()
    assert.is_true(#pretty.show(lumoe.zeros { 1000, 1000 }) < 2000)
  end)

  it('offers its methods', function()
    assert.same({ 'matmul' }, (complete.complete('x:matmu', { x = x })))
  end)

  it('offers its fields, but not behind a colon', function()
    for _, name in ipairs { 'dtype', 'grad', 'is_leaf', 'requires_grad', 'shape' } do
      assert.equal(name, complete.complete('x.' .. name:sub(1, -2), { x = x })[1])
      assert.not_equal(name, complete.complete('x:' .. name, { x = x })[1])
    end
  end)

  it('offers the functions of lumoe', function()
    assert.same({ 'arange' }, (complete.complete('lumoe.ara', { lumoe = lumoe })))
  end)

  it('gives the parameters of a method', function()
    assert.matches('^matmul%(a, b%)', help.text 'matmul')
  end)
end)
