--- The prompt as a person meets it: on a pseudo-terminal, with readline.
local posix = require 'posix'

local here = debug.getinfo(1, 'S').source:match '^@(.*)/'
local pty = dofile(here .. '/pty.lua')

local program = posix.readlink '/proc/self/exe'
local CTRL_C, CTRL_D, TAB, UP = '\3', '\4', '\t', '\27[A'

describe('the prompt', function()
  local session, folder

  local function open()
    session = pty.start({ program }, {
      LUMOE_HISTORY = folder .. '/history',
      INPUTRC = '/dev/null', -- not the tester's key bindings
      TERM = 'vt100',
      COLUMNS = '200',
      LUA_INIT = '',
    })
    session:wait '\n> '
    return session
  end

  local function close()
    session:type(CTRL_D)
    local how, code = session:finish()
    assert.equal('exited', how)
    assert.equal(0, code)
  end

  before_each(function()
    folder = os.tmpname()
    os.remove(folder)
    assert(posix.mkdir(folder))
    open()
  end)

  after_each(function()
    session:close()
    os.remove(folder .. '/history')
    os.remove(folder)
  end)

  it('greets with version, memory and threads', function()
    assert.matches('Lumoe.*LuaJIT.*GiB of memory, %d+ thread', session.screen)
  end)

  it('shows the values of expressions and keeps the first in _', function()
    assert.matches('\n2\n', session:enter '1 + 1' .. '\n')
    assert.matches('\n4\n', session:enter '_ * 2' .. '\n')
    assert.matches("\n'a'\nnil\n", session:enter '"a", nil' .. '\n')
  end)

  it('goes on at >> until the chunk is complete', function()
    session:type 'function twice(x)\n'
    session:wait '\n>> '
    session:type '  return 2 * x\n'
    session:wait '\n>> '
    session:enter 'end'
    assert.matches('\n42$', session:enter 'twice(21)')
  end)

  it('shows an error with its traceback and keeps the session', function()
    session:enter 'kept = 7'
    local output = session:enter 'error "boom"'
    assert.matches('stdin:1: boom\nstack traceback:\n.*stdin:1: in main chunk', output)
    assert.not_matches('evaluate.lua', output)
    assert.matches('\n7$', session:enter 'kept')
  end)

  it('shows a syntax error at once, and asks for no more', function()
    assert.matches("unexpected symbol near '%+'", session:enter '1 + + 2')
    assert.matches('unfinished string', session:enter 'x = "open')
  end)

  for name, chunk in pairs {
    ['an empty loop'] = 'while true do end',
    ['a compiled loop'] = 'x = 0 for i = 1, 1e15 do x = x + i end',
    ['a loop over FFI memory'] = "a = require'ffi'.new('double[64]') while true do for i = 0, 63 do a[i] = i end end",
    ['an allocating loop'] = 'while true do local t = {} for i = 1, 100 do t[i] = { i } end end',
    ['a coroutine'] = 'f = coroutine.wrap(function() while true do coroutine.yield(1) end end) while true do f() end',
    ['printing'] = 'setmetatable({}, { __tostring = function() while true do end end })',
    ['a wait for input'] = 'io.read()',
  } do
    it('is given back within a second by Ctrl-C in ' .. name, function()
      -- The chunk says that it runs, then runs long enough to be compiled.
      local run = name == 'printing' and 'return ' .. chunk or chunk
      session:type('io.write("run", "ning\\n") io.flush() ' .. run .. '\n')
      session:wait 'running\n'
      posix.nanosleep(0, 50e6)
      session:type(CTRL_C)
      local output, seconds = session:wait '\n> '
      assert.matches('interrupted', output)
      assert.is_true(seconds < 1, ('took %.2f s'):format(seconds))
      assert.matches('\n3$', session:enter '1 + 2')
    end)
  end

  it('gets out of a loop that catches errors by a second Ctrl-C', function()
    session:type 'while true do pcall(function() io.write("run", "ning\\n") while true do end end) end\n'
    session:wait 'running\n'
    session:type(CTRL_C)
    session:wait 'running\n' -- swallowed
    session:type(CTRL_C)
    assert.matches('interrupted', session:wait '\n> ')
  end)

  it('still interrupts compiled loops after a profiler was used', function()
    session:enter 'p = require "jit.profile" p.start("fi10", function() end) p.stop()'
    session:type 'io.write("run", "ning\\n") while true do end\n'
    session:wait 'running\n'
    session:type(CTRL_C)
    assert.matches('interrupted', session:wait '\n> ')
  end)

  it('clears the line, and a chunk that is not complete, by Ctrl-C', function()
    session:type 'half a line'
    session:wait 'half a line'
    session:type(CTRL_C)
    session:wait '^C\n> '
    session:type 'for i = 1, 2 do\n'
    session:wait '\n>> '
    session:type(CTRL_C)
    session:wait '^C\n> '
    assert.matches('\n5$', session:enter '2 + 3')
  end)

  it('completes members, methods, globals, keywords and file names', function()
    assert.matches("\n'abab'$", session:enter('string.re' .. TAB .. 'p("ab", 2)'))
    assert.matches("\n'AB'$", session:enter('("ab"):upp' .. TAB .. '()'))
    assert.matches('\nfunction tostring$', session:enter('tostr' .. TAB))
    local output = session:enter('i' .. 'o.open("' .. here .. '/terminal_sp' .. TAB .. '):read()')
    assert.matches('The prompt as a person meets it', output)
  end)

  it('lists what is possible on a second Tab', function()
    session:type('math.atan' .. TAB .. TAB)
    session:wait 'atan2'
    session:type(CTRL_C)
    session:wait '\n> '
  end)

  it('finds the last session in the history, without duplicates', function()
    session:enter 'first = 1'
    session:enter 'second = 2'
    session:enter 'second = 2'
    session:type 'function third()\n'
    session:wait '\n>> '
    session:enter 'end'
    close()
    local file = assert(io.open(folder .. '/history'))
    assert.equal('first = 1\nsecond = 2\nfunction third()\n\tend\n', file:read '*a')
    file:close()
    open()
    assert.matches('first = 1', session:enter(UP .. UP .. UP))
    assert.matches('\n1$', session:enter 'first')
    assert.matches('\nnil$', session:enter 'second')
  end)

  it('ends by Ctrl-D, with the exit code 0 even after an error', function()
    session:enter 'error "boom"'
    close()
  end)

  it('ends with the code that os.exit is given', function()
    session:type 'os.exit(7)\n'
    local how, code = session:finish()
    assert.equal('exited', how)
    assert.equal(7, code)
  end)
end)
