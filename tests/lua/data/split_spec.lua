local split = require 'lumoe.data.split'

describe('split', function()
  it('keys by lower-case words, digits as 0', function()
    assert.equal('open 0 files', split.key('Open 12 files!'))
    assert.equal('open 0 files', split.key('  open “7” files…'))
    assert.equal('a café', split.key('A «café»'))
  end)

  it('hashes to fixed numbers: a changed hash would leak test sentences into training', function()
    assert.equal(7, split.hash(''))
    assert.equal(7 * 131 + 97, split.hash('a'))
    assert.equal(1570526474, split.hash('open 0 files'))
  end)

  it('puts about 1 % into test and 0.5 % into valid', function()
    local counts = { train = 0, valid = 0, test = 0 }
    for i = 1, 50000 do
      local part = split.of(('word%d and %x'):format((i * 7919) % 50021, i * i))
      counts[part] = counts[part] + 1
    end
    assert.near(500, counts.test, 100)
    assert.near(250, counts.valid, 75)
  end)
end)
