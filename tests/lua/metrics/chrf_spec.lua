-- Against what sacrebleu said (tests/fixtures/sacrebleu/make.py).
local cjson = require 'cjson'
local metrics = require 'lumoe.metrics'

local here = debug.getinfo(1, 'S').source:match '^@(.*)/'
local file = assert(io.open(here .. '/../../fixtures/sacrebleu/cases.json'))
local cases = cjson.decode(file:read '*a')
file:close()

describe('chrf', function()
  for _, case in ipairs(cases) do
    it('equals sacrebleu: ' .. case.name, function()
      local got = metrics.chrf(case.hyps, case.refs)
      assert.near(case.chrf.score, got.score, 1e-9)
      assert.equal(case.chrf.signature, got.signature)
      assert.equal(case.chrf.line, tostring(got))
    end)
  end

  it('names what is wrong', function()
    assert.error_matches(function() metrics.chrf({ 'a' }, {}) end, 'chrf: 1 hypotheses, but 0 references')
  end)

  it('scores four directions of 800 sentences, with BLEU, within a second or so', function()
    local hyps, refs, state = {}, {}, 7
    local words = {
      'the', 'translation', 'of', 'this', 'sentence', 'opens', '«Datei»', 'größer', '1,000.5', 'Файл',
    }
    local function sentence()
      local line = {}
      for w = 1, 18 do
        state = (state * 1103515245 + 12345) % 2147483648
        line[w] = words[math.floor(state / 65536) % #words + 1]
      end
      return table.concat(line, ' ') .. '.'
    end
    for i = 1, 800 do hyps[i], refs[i] = sentence(), sentence() end
    local start = os.clock()
    for _ = 1, 4 do
      metrics.bleu(hyps, refs)
      metrics.chrf(hyps, refs)
    end
    local seconds = os.clock() - start
    assert.is_true(seconds < 4, ('took %.1f s'):format(seconds)) -- four times the aim: machines are shared
  end)
end)
