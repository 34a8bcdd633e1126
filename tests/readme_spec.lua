--- What README.md shows runs, as it stands there.
local path = require 'pl.path'
local utils = require 'pl.utils'

local program = os.getenv 'LUMOE'

local function blocks(language)
  local text, list = assert(utils.readfile 'README.md'), {}
  for body in text:gmatch('\n```' .. language .. '\n(.-)\n```') do list[#list + 1] = body end
  return list
end

local function run(source)
  local file = path.tmpname()
  assert(utils.writefile(file, source))
  local ok, code, out, err = utils.executeex(('%s %s'):format(utils.quote_arg(program), file))
  os.remove(file)
  return ok and code == 0, out, err
end

describe('README', function()
  it('has snippets', function() assert.equal(2, #blocks 'lua') end)

  it('computes the gradient that it shows', function()
    local ok, out, err = run("lumoe = require 'lumoe'\n" .. blocks('lua')[1]) -- the prompt has `lumoe`
    assert.is_true(ok, err)
    assert.matches('2.0000, +4.0000.*6.0000, +8.0000', out)
  end)

  it('runs a router of one\'s own', function()
    local ok, out, err = run(blocks('lua')[2])
    assert.is_true(ok, err)
    local drop_rate, rows = out:match '^(%S+)%s+(%S+)'
    assert.is_true(tonumber(drop_rate) >= 0 and tonumber(drop_rate) < 1, out)
    assert.equal(8, tonumber(rows))
  end)

  it('names files that are there', function()
    local text = assert(utils.readfile 'README.md')
    local named = 0
    for name in text:gmatch '`([%w_]+/[%w_./]+)`' do
      if not name:match '^build/' and not name:match '^runs/' then
        named = named + 1
        assert.is_truthy(path.exists(name), name .. ' is named but not there')
      end
    end
    assert.is_true(named > 10)
  end)
end)
