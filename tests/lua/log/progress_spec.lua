local log = require 'lumoe.log'
local terminal = require 'lumoe.log.terminal'

-- A stream that remembers, and a clock that is set.
local function fake(opts)
  local written, now = {}, 100
  opts.stream = {
    write = function(_, ...) written[#written + 1] = table.concat { ... } end,
    flush = function() end,
  }
  opts.clock = function() return now end
  if opts.utf8 == nil then opts.utf8 = true end
  local bar = log.progress(opts)
  return bar, function(seconds) now = now + seconds end, function() return table.concat(written) end
end

describe('progress, on a terminal', function()
  it('shows percent, bar, counts, times, rate, loss and drops in one line', function()
    local bar, wait, text = fake { total = 1000, desc = 'train', terminal = true, width = 100 }
    wait(83)
    bar:update(450, { tokens = 431600, loss = 3.2101, dropped = 0.0123 })
    assert.equal('\rtrain:  45%|████████████▌               | '
      .. '450/1000 [01:23<01:41, 5.2k tok/s, loss 3.210, drop 1.2%]\27[K', text())
    assert.equal(99, terminal.columns((text():gsub('^\r', ''):gsub('\27%[K', ''))))
  end)

  it('redraws at most ten times a second', function()
    local bar, wait, text = fake { total = 1000, terminal = true, width = 80 }
    for _ = 1, 1000 do
      wait(0.01)
      bar:update(1)
    end
    local _, draws = text():gsub('\r', '')
    assert.is_true(draws > 80 and draws <= 101, draws .. ' draws in 10 s')
  end)

  it('fits every width, and loses the bar before the numbers', function()
    for width = 5, 120 do
      local bar, wait, text = fake { total = 1000, desc = 'größe', terminal = true, width = width }
      wait(1)
      bar:update(333, { tokens = 1000, loss = 1, extra = 'ü' })
      local line = text():gsub('^\r', ''):gsub('\27%[K', '')
      assert.is_true(terminal.columns(line) < width, width .. ': ' .. line)
      if width > 70 then assert.matches('333/1000', line) end
    end
  end)

  it('ends with a full bar and a new line, once', function()
    local bar, wait, text = fake { total = 10, terminal = true, width = 80 }
    wait(1)
    bar:update(1)
    bar:update(9)
    bar:close()
    bar:close()
    assert.matches('100%%|[█]+| 10/10 %[00:01<00:00', text())
    assert.equal(1, select(2, text():gsub('\n', '')))
  end)

  it('prints messages above the line', function()
    local bar, wait, text = fake { total = 10, terminal = true, width = 80 }
    wait(1)
    bar:update(5)
    bar:message 'checkpoint saved'
    assert.matches('\r\27%[Kcheckpoint saved\n\r 50%%', text())
  end)

  it('draws in ASCII where the locale has no UTF-8', function()
    local bar, wait, text = fake { total = 2, terminal = true, width = 60, utf8 = false }
    wait(1)
    bar:update(1)
    assert.matches(' 50%%|#+%-+| 1/2 ', text())
    assert.not_matches('[\128-\255]', text())
  end)

  it('does without a total', function()
    local bar, wait, text = fake {
      desc = 'reading', unit = 'lines', scale = true, terminal = true, width = 80,
    }
    wait(10)
    bar:update(61400)
    assert.equal('\rreading: 61.4k lines [00:10, 6.1k lines/s]\27[K', text())
  end)
end)

describe('progress, elsewhere', function()
  it('prints the first line, one every ten seconds, and the last', function()
    local bar, wait, text = fake { total = 100, desc = 'train', terminal = false }
    for _ = 1, 100 do
      wait(0.25)
      bar:update(1, { loss = 2 })
    end
    bar:close()
    local lines = {}
    for line in text():gmatch '[^\n]+' do lines[#lines + 1] = line end
    assert.equal(4, #lines, text()) -- after 0.25, 10.25 and 20.25 s, and at the end
    assert.equal('train: 1/100 1% [00:00<00:25, 4.0 it/s, loss 2.000]', lines[1])
    assert.equal('train: 100/100 100% [00:25<00:00, 4.0 it/s, loss 2.000]', lines[4])
    assert.not_matches('[\r\27]', text())
  end)

  it('does not repeat the last line', function()
    local bar, _, text = fake { total = 1, terminal = false }
    bar:update(1)
    bar:close()
    assert.equal(1, select(2, text():gsub('\n', '')))
  end)
end)

describe('progress', function()
  it('goes on from where a resumed job was, with the rate of this run', function()
    local bar, wait, text = fake { total = 1000, initial = 900, terminal = false }
    wait(10)
    bar:update(50)
    assert.equal('950/1000 95% [00:10<00:10, 5.0 it/s]\n', text())
  end)

  it('measures the rate over the last half-minute', function()
    local bar, wait, text = fake { total = 100000, terminal = false }
    for _ = 1, 100 do
      wait(1)
      bar:update(100)
    end
    for _ = 1, 61 do
      wait(1)
      bar:update(1)
    end
    assert.matches('1%.0 it/s%]\n$', text())
  end)

  it('prints nothing when quiet', function()
    for _, is_terminal in ipairs { true, false } do
      local bar, wait, text = fake { total = 2, terminal = is_terminal, quiet = true, width = 80 }
      wait(20)
      bar:update(1, { loss = 1 })
      bar:message 'hello'
      bar:close()
      assert.equal('', text())
    end
  end)

  it('survives nothing to do, and more than was said', function()
    local empty, _, text = fake { total = 0, terminal = false }
    empty:update(0)
    empty:close()
    assert.matches('^0/0 100%% %[00:00<00:00', text())
    local over, wait, more = fake { total = 10, terminal = true, width = 60 }
    wait(1)
    over:update(15)
    assert.matches('100%%|.*15/10', more())
  end)

  it('refuses unknown options', function()
    assert.error_matches(function() log.progress { totals = 3 } end, "progress: no option 'totals'")
  end)
end)
