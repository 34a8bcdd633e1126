--- recipes/check_layouts.lua as a user runs it.
local cjson = require 'cjson'
local run = require 'tests.recipes.run'
local utils = require 'pl.utils'

local TINY = '--dim 16 --hidden 24 --batch 6 --time 7 --vocab 20 --experts 5 '

describe('recipes/check_layouts.lua', function()
  it('prints a table, writes the figures as JSON, and ends with 0 when all are the same', function()
    local file = os.tmpname()
    local code, output, errors = run.shell(run.command('recipes/check_layouts.lua',
      TINY .. '--only "ep2 etp1" --steps 2 --json ' .. file, { ranks = 2 }))
    assert.equal('', errors)
    assert.equal(0, code)
    assert.matches('^layout +loss +norm +gradient', output)
    assert.matches('dp2 tp1 edp1 ep2 etp1 recompute +%d', output)
    local list = cjson.decode(utils.readfile(file))
    os.remove(file)
    assert.is_true(#list >= 3)
    for _, row in ipairs(list) do
      assert.matches('ep2', row.layout)
      for _, name in ipairs { 'loss_rel', 'norm_rel', 'grad_rel' } do assert.is_true(row[name] <= 1e-6, name) end
      assert.is_true(row.bytes > 1000 and row.peak > 10000)
    end
  end)

  it('gives the same bits from run to run', function()
    local file = os.tmpname()
    finally(function() os.remove(file) end)
    local options = TINY .. '--steps 1 --noise 1 --only "tp2 edp2 ep2 etp1" '
    local how = { ranks = 4 }
    assert.equal(0, (run.shell(run.command('recipes/check_layouts.lua', options .. '--json ' .. file, how))))
    local code, output = run.shell(run.command('recipes/check_layouts.lua', options .. '--same-as ' .. file, how))
    assert.equal(0, code)
    assert.matches('\n0 of them to other bits', output)
    local rows = cjson.decode(utils.readfile(file))
    assert.is_true(#rows > 10)
    rows[1].bits = ('0'):rep(16)
    utils.writefile(file, cjson.encode(rows))
    code, output = run.shell(run.command('recipes/check_layouts.lua', TINY .. '--steps 1 --noise 1 --only "'
      .. rows[1].layout .. '" --same-as ' .. file .. ' --json ' .. file, how)) -- compared before it is written
    assert.equal(1, code)
    assert.matches('1 of them to other bits', output)
    assert.not_equal(('0'):rep(16), cjson.decode(utils.readfile(file))[1].bits)
  end)

  it('ends with 1 when nothing was examined', function()
    local code, output = run.shell(run.command('recipes/check_layouts.lua', TINY .. '--only nonsense'))
    assert.equal(1, code)
    assert.matches('^0 layouts of 1 rank', output)
  end)

  it('refuses files before it runs', function()
    for options, want in pairs {
      ['--json /no/such'] = '--json /no/such: No such file or directory',
      ['--same-as /no/such'] = '--same-as /no/such: cannot be read',
      ['--same-as recipes/check_layouts.lua'] = '--same-as recipes/check_layouts.lua: not what --json writes',
    } do
      local code, output, errors = run.shell(run.command('recipes/check_layouts.lua', options))
      assert.same({ 1, '', 'lumoe: ' .. want .. '\n' }, { code, output, errors })
    end
  end)

  it('says what is wrong with its options', function()
    local code, _, errors = run.shell(run.command('recipes/check_layouts.lua', '--experts 2 --top-k 3'))
    assert.is_true(code > 0)
    assert.matches('%-%-top%-k 3: there are 2 experts', errors)
  end)
end)
