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
  -- Experts in uneven blocks on 3 ranks; everything that needs 4.
  for _, case in ipairs { { 1, '' }, { 2, '' }, { 3, '--only "ep 3"' }, { 4, '--only "ep 2"' }, { 4, '--only "two levels"' } } do
    it(('is right about real steps on %d rank%s %s'):format(case[1], case[1] > 1 and 's' or '', case[2]), function()
      local results = figures('--verify ' .. case[2], case[1])
      assert.is_true(#results >= 3)
      for _, layout in ipairs(results) do
        local held = {}
        for _, line in ipairs(layout.lines) do
          local where = layout.layout .. ': ' .. line.what
          assert.is_false(line.wrong, where)
          -- over capacity, chance decides whose rows travel
          local by_chance = layout.layout:find 'capacity' and (line.what == 'bytes sent' or line.what:find '^exchange: bytes')
          local allowed = (line.what:find 'memory' or by_chance) and 0.05 or case[1] == 3 and 1e-4 or 1e-9
          assert.is_true(not line.held or line.off <= allowed, where)
          held[line.what] = line.held
          if line.what == 'memory: total' then assert.is_true(line.counted > 2 ^ 20) end
        end
        for _, what in ipairs { 'parameters', 'memory: parameters', 'memory: activations', 'memory: total', 'memory: at leisure',
          'bytes sent', 'messages sent' } do
          assert.is_true(held[what], layout.layout .. ': ' .. what)
        end
      end
    end)
  end

  it('says no when it is off', function()
    local code, output = estimate('--verify --only dp --tolerance 0')
    assert.is_true(code ~= 0)
    assert.truthy(output:find 'WRONG')
  end)

  it('prints times beside those of real steps', function() -- other jobs are in both, so that only the size of it is held
    local results, output = figures('--times --only narrow', 1)
    assert.equal(2, #results)
    for _, r in ipairs(results) do
      local ratio = r.planned / r.counted
      assert.is_true(ratio > 0.1 and ratio < 10, ('%s %s: %g s planned, %g counted'):format(r.size, r.precision, r.planned, r.counted))
    end
    assert.matches('narrow +bf16 +one rank ', output)
    assert.matches('2 steps: off by', output)
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

  it('plans each exchange', function()
    local sent = {}
    for _, how in ipairs { 'rows', 'once', 'padded', 'two_level', 'once,two_level', 'once,parts=4', 'shadow=2' } do
      local results = figures('--experts 64 --top-k 8 --capacity 0 --ranks 16 --ep 16 --popularity 1 --hardware a100-40 --exchange ' .. how)
      sent[how] = { far = 0, messages = 0 }
      for _, t in ipairs(results.wires) do
        if t.wire == 'all-to-all' then
          sent[how].far, sent[how].messages = sent[how].far + t.between_hosts, sent[how].messages + t.messages_between_hosts
        elseif t.wire == 'shadows' then sent[how].shadows = t.bytes end
      end
    end
    assert.is_true(sent.once.far < sent.rows.far and sent.padded.far > sent.rows.far)
    assert.is_true(sent['once,two_level'].far < sent.once.far)
    assert.is_true(8 * sent.two_level.messages == sent.rows.messages)
    assert.is_true(sent['once,parts=4'].messages == 4 * sent.once.messages)
    assert.is_true(sent['shadow=2'].shadows > 0 and sent['shadow=2'].far < sent.rows.far)
  end)

  it('names mistakes', function()
    local _, _, errors = estimate '--ranks 4 --ep 3'
    assert.truthy(errors:find('ep · etp = 3 does not divide 4 ranks', 1, true), errors)
    _, _, errors = estimate '--hardware abacus'
    assert.truthy(errors:find('must be one of', 1, true), errors)
    _, _, errors = estimate '--exchange once,by_mail'
    assert.truthy(errors:find("no exchange 'by_mail'", 1, true), errors)
    _, _, errors = estimate '--ranks 4 --ep 4 --on-host 3 --exchange two_level'
    assert.truthy(errors:find('two levels want hosts alike', 1, true), errors)
  end)
end)
