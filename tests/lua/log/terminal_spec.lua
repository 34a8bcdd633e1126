-- What a stream can show; the program itself is run on a real pseudo-terminal, which `script` makes.
local terminal = require 'lumoe.log.terminal'

local LUMOE = os.getenv 'LUMOE' or './build/bin/lumoe'

-- What a Lua program writes to a terminal of 70 columns, under the given environment.
local function on_terminal(environment, program)
  local path = os.tmpname()
  local file = assert(io.open(path, 'w'))
  file:write(program)
  file:close()
  local pipe = assert(io.popen(([[
    script -qec 'stty cols 70 && env -u COLUMNS -u NO_COLOR -u COLORTERM TERM=xterm %s %s %s' /dev/null </dev/null 2>&1
  ]]):format(environment, LUMOE, path)))
  local text = pipe:read '*a'
  pipe:close()
  os.remove(path)
  return text
end

local SHOW = [[
  local terminal = require 'lumoe.log.terminal'
  print(terminal.is(io.stdout), terminal.width(io.stdout), terminal.colors(io.stdout), terminal.utf8())
]]

describe('terminal', function()
  it('finds out what a real one can show', function()
    assert.matches('^true\t70\t256\ttrue', on_terminal('LC_ALL=C.UTF-8', SHOW))
    assert.matches('^true\t70\t0\tfalse', on_terminal('NO_COLOR=1 LC_ALL=C', SHOW))
    assert.matches('^true\t33\t16777216\ttrue', on_terminal('COLORTERM=truecolor COLUMNS=33 LC_ALL=C.UTF-8', SHOW))
    assert.matches('^false\t70\t0', on_terminal('TERM=dumb', SHOW))
  end)

  it('gets the progress line in place, in its width', function()
    local text = on_terminal('LC_ALL=C.UTF-8', [[
      local bar = require('lumoe.log').progress { total = 4, desc = 'train' }
      for _ = 1, 4 do bar:update(1, { loss = 2 }) end
      bar:close()
    ]])
    local last = text:match '\r(train: 100%%|[^\r]*)\27%[K\r\n$'
    assert.is_string(last, text)
    assert.equal(69, terminal.columns(last))
    assert.matches('| 4/4 %[00:00<00:00, .*, loss 2.000%]$', last)
  end)

  it('is none when the stream is a file', function()
    local file = io.tmpfile()
    assert.is_false(terminal.is(file))
    assert.equal(0, terminal.colors(file))
    file:close()
  end)

  it('cuts text by characters', function()
    assert.equal('grö', terminal.cut('größe', 3))
    assert.equal('größe', terminal.cut('größe', 5))
    assert.equal('', terminal.cut('größe', 0))
  end)
end)
