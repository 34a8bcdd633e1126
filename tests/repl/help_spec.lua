local help = require 'repl.help'

--- Doubles a number.
---@param x number  what to double
---@return number   twice x
local function double(x) return 2 * x end

describe('repl.help', function()
  it('prints the comment above a function, with its parameters', function()
    local text = help.text(double)
    assert.matches('^function%(x%) .*help_spec.lua:%d+\n\nDoubles a number.\n', text)
    assert.matches('\n  x: number  what to double\n  returns number   twice x$', text)
  end)

  it('finds what a string names', function()
    assert.matches('^string.rep: built in', help.text 'string.rep')
    local text = help.text(require 'repl.history')
    assert.matches('^repl.history  %(.*history.lua%)\n\nWhat was typed, kept between', text)
    assert.equal("nothing is called 'nonsense.at.all'", help.text 'nonsense.at.all')
  end)

  it('lists the members of a table', function()
    assert.matches('\n  append load path', help.text(require 'repl.history'):gsub('LIMIT ', ''))
  end)

  it('asks providers first', function()
    local thing = {}
    help.provide(function(value) return value == thing and 'a thing' or nil end)
    assert.equal('a thing', help.text(thing))
  end)
end)
