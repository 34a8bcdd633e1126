local json = require 'lumoe.data.json'
local run = require 'tests.recipes.run'
local file = require 'pl.file'

local function estimate(arguments, ranks)
  return run.shell(run.command('recipes/estimate.lua', arguments, { ranks = ranks }))
end

-- The figures that a run wrote, and what it printed.
local function figures(arguments, ranks)
  local path = os.tmpname()
  local code, output, errors = estimate(arguments .. ' --json ' .. path, ranks)
  assert.equal(0, code, errors)
  local results = json.decode((assert(file.read(path))))
  os.remove(path)
  return results, output
end

describe('recipes/estimate.lua', function()
  for _, ranks in ipairs { 1, 2, 3 } do
    it(('is right about memory, bytes and messages of real steps on %d rank%s'):format(ranks, ranks > 1 and 's' or ''), function()
      local results = figures('--verify', ranks)
      assert.is_true(#results >= 3)
      local checked = 0
      for _, layout in ipairs(results) do
        for _, line in ipairs(layout.lines) do
          assert.is_false(line.wrong, layout.layout .. ': ' .. line.what)
          if line.what == 'memory: total' then assert.is_true(line.counted > 2 ^ 20) end
          checked = checked + 1
        end
      end
      assert.equal(9 * #results, checked)
    end)
  end

  it('says no when it is off', function()
    local code, output = estimate('--verify --tolerance 0')
    assert.is_true(code ~= 0)
    assert.truthy(output:find 'WRONG')
  end)

  it('prints a plan, and writes its figures', function()
    local results, output = figures '--experts 64 --ranks 64 --ep 64 --sequences 4096 --hardware a100-40'
    for _, words in ipairs { '64 ranks · dp 64 · ep 64, bf16', 'memory of a rank', 'all%-to%-all', 'tokens/s', 'fits; what binds' } do
      assert.truthy(output:find(words), words)
    end
    assert.is_true(results.fits)
    assert.is_true(results.memory.peak.total > results.memory.peak.parameters)
    assert.is_true(results.time.total > 0)
  end)

  it("finds the paper's 3.5 trillion parameters on 512 GPUs, and its 8 times", function()
    local results, output = figures '--paper'
    local by = {}
    for _, row in ipairs(results.largest) do by[row.mode] = row end
    assert.is_true(by['EP + ZeRO-3 + offload'].parameters > 3.5e12)
    assert.is_true(by['EP + ZeRO-3 + offload'].ratio > 8)
    assert.is_true(by['EP'].parameters < 3.5e12 / 8)
    assert.truthy(output:find 'assumed')
  end)

  it('names mistakes', function()
    local _, _, errors = estimate '--ranks 4 --ep 3'
    assert.truthy(errors:find('ep · etp = 3 does not divide 4 ranks', 1, true), errors)
    _, _, errors = estimate '--hardware abacus'
    assert.truthy(errors:find('must be one of', 1, true), errors)
  end)
end)
