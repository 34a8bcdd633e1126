--- The recipe that looks for the largest model: its search, and a run of it that is small.
-- slow: two ranks train models of several sizes
local cjson = require 'cjson'
local run = require 'tests.recipes.run'
local search = require 'recipes.max_model.search'

describe('the search for the largest', function()
  -- Returns what was found and the sizes that were measured.
  local function look(bytes, limit, first, most)
    local seen = {}
    local n, at, beyond = search.largest(function(size)
      seen[#seen + 1] = size
      assert(size >= 1 and size <= most and size % 1 == 0, tostring(size))
      return bytes(size)
    end, limit, first, most)
    return n, at, beyond, seen
  end
  local function line(n) return 1000 + 7 * n end

  for _, first in ipairs { 1, 30, 1284, 1285, 1290, 100000 } do
    it(('finds it in a few steps, beginning with %d'):format(first), function()
      local n, at, beyond, seen = look(line, 10000, first, 1e6) -- 1285 fit exactly
      assert.is_true(n <= 1285 and n >= 1285 / 1.011, tostring(n))
      assert.equal(line(n), at)
      assert.is_true(beyond)
      assert.is_true(#seen <= 9, table.concat(seen, ' '))
    end)
  end

  it('finds the very one where there are few', function()
    for limit = 20, 90, 7 do
      assert.equal(math.floor(limit / 10), (look(function(n) return 10 * n end, limit, 5, 1000)))
    end
  end)

  it('copes with steps and bends', function()
    local function bytes(n) return 4000 * math.ceil(n / 10) + n ^ 1.5 end
    local n, at = look(bytes, 1e6, 3, 1e6)
    assert.is_true(at <= 1e6 and bytes(math.ceil(n * 1.011) + 1) > 1e6, tostring(n))
  end)

  it('stops at the most that is asked for, and says when nothing fits', function()
    local n, _, beyond = look(line, 1e9, 10, 500)
    assert.equal(500, n)
    assert.is_false(beyond)
    assert.is_nil((look(line, 900, 600, 1000)))
  end)
end)

describe('recipes/max_model.lua', function()
  local file = os.tmpname()
  teardown(function() os.remove(file) end)

  it('finds that offload trains larger models, as large as the planner says', function()
    local code, said, errors = run.shell(run.command('recipes/max_model.lua',
      ('--limit 24MiB --bucket 256KiB --dim 48 --hidden 32 --heads 2 --vocab 256 --tokens 8 --sequences 1 --json %s')
        :format(file), { ranks = 2 }))
    assert.equal(0, code, said .. errors)
    assert.matches('largest model in 24 MiB a rank, 2 ranks', said)
    local list, ratio = cjson.decode(require('pl.utils').readfile(file)), {}
    assert.equal(9, #list)
    for _, r in ipairs(list) do
      assert.is_true(r.peak <= 24 * 2 ^ 20 and r.peak > 0.9 * 24 * 2 ^ 20, r.mode)
      assert.is_true(math.abs(r.params / r.predicted - 1) < 0.05, ('%s: %d, predicted %d'):format(r.mode, r.params, r.predicted))
      ratio[r.mode] = r.ratio
    end
    assert.equal(1, ratio['EP+DP'])
    assert.is_true(ratio['EP+offload'] >= 7 and ratio['EP+offload-parameters'] > 8, said)
    assert.is_true(ratio['EP+offload+TP'] > ratio['EP+offload-parameters'], said)
  end)

  it('says which modes the ranks do not make', function()
    local code, said = run.shell(run.command('recipes/max_model.lua',
      '--limit 12MiB --layers 2 --dim 32 --hidden 32 --heads 2 --vocab 64 --tokens 8 --modes EP+DP,EP+TP --most 20'))
    assert.equal(0, code)
    assert.matches('EP%+TP +needs a number of ranks that 2 divides', said)
    assert.matches('EP%+DP +20 .*%-%-most', said)
  end)

  it('refuses what makes no sense', function()
    local code, _, errors = run.shell(run.command('recipes/max_model.lua', '--limit much'))
    assert.equal(1, code)
    assert.matches("'much' is not a size as 256MiB", errors)
    assert.equal('lumoe: --json /no/such: No such file or directory\n',
      (select(3, run.shell(run.command('recipes/max_model.lua', '--json /no/such')))))
    assert.matches("no mode 'DP'; there are EP,", (select(3, run.shell(run.command('recipes/max_model.lua', '--modes DP')))))
  end)
end)
