-- Against the bytes of TensorBoard's own writer (tests/fixtures/tensorboard/make.py).
local lfs = require 'lfs'
local log = require 'lumoe.log'
local tensorboard = require 'lumoe.log.tensorboard'

local here = debug.getinfo(1, 'S').source:match '^@(.*)/'

local function contents(path)
  local file = assert(io.open(path, 'rb'))
  local bytes = file:read '*a'
  file:close()
  return bytes
end

describe('tensorboard', function()
  local dir
  before_each(function()
    dir = os.tmpname()
    os.remove(dir)
  end)
  after_each(function()
    if not lfs.attributes(dir) then return end
    for name in lfs.dir(dir) do os.remove(dir .. '/' .. name) end
    lfs.rmdir(dir)
  end)

  it('has the known crc32c values (RFC 3720, B.4)', function()
    assert.equal(0xE3069283, tensorboard.crc32c '123456789' % 2 ^ 32)
    assert.equal(0x8A9136AA, tensorboard.crc32c(('\0'):rep(32)) % 2 ^ 32)
    assert.equal(0x62A8AB43, tensorboard.crc32c(('\255'):rep(32)) % 2 ^ 32)
    assert.equal(0, tensorboard.crc32c '')
  end)

  it('writes the same bytes as TensorBoard', function()
    local writer = log.tensorboard(dir, { resume_step = 100, clock = function() return 1700000000.25 end })
    writer:scalars(0, { ['train/loss'] = 9.25, note = 'not a number' })
    writer:scalars(127, { ['train/loss'] = -0.1, lr = 1e-5 })
    writer:scalars(128, { ['übung/größe'] = 3, inf = math.huge, [('x'):rep(200)] = 1 })
    writer:scalars(5000000000, { ['big step'] = 2 ^ 24 + 1 })
    writer:close()
    assert.equal(contents(here .. '/../../fixtures/tensorboard/events.bin'), contents(writer.path))
  end)

  it('has written each step when it returns, and never reuses a file', function()
    local first, second = log.tensorboard(dir), log.tensorboard(dir)
    assert.not_equal(first.path, second.path)
    local before = #contents(first.path)
    first:scalars(1, { loss = 1 })
    assert.is_true(#contents(first.path) > before)
    first:close()
    second:close()
  end)

  it('names what is wrong', function()
    local writer = log.tensorboard(dir)
    assert.error_matches(function() writer:scalars(-1, {}) end,
      'tensorboard: step must be an integer from 0, not %-1')
    assert.error_matches(function() writer:scalars(1.5, {}) end, 'not 1.5')
    writer:close()
    assert.error_matches(function() log.tensorboard(dir .. '/not/there') end,
      'tensorboard: .*not/there: No such file')
  end)
end)
