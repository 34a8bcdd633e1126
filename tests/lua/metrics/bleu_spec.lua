-- Against what sacrebleu said (tests/fixtures/sacrebleu/make.py), on sentences made to differ.
local cjson = require 'cjson'
local metrics = require 'lumoe.metrics'
local tokenize = require 'lumoe.metrics.tokenize'

local here = debug.getinfo(1, 'S').source:match '^@(.*)/'
local file = assert(io.open(here .. '/../../fixtures/sacrebleu/cases.json'))
local cases = cjson.decode(file:read '*a')
file:close()

describe('bleu', function()
  it('has the fixtures that sacrebleu made', function() assert.is_true(#cases > 30) end)

  for _, case in ipairs(cases) do
    for _, tokenizer in ipairs { '13a', 'char' } do
      local want = case.bleu[tokenizer]

      it(('cuts words like sacrebleu: %s, %s'):format(case.name, tokenizer), function()
        for i, hyp in ipairs(case.hyps) do
          assert.same(case.tokens[tokenizer][i], tokenize[tokenizer](hyp))
        end
      end)

      it(('equals sacrebleu: %s, %s'):format(case.name, tokenizer), function()
        local got = metrics.bleu(case.hyps, case.refs, { tokenize = tokenizer })
        assert.near(want.score, got.score, 1e-9)
        assert.same(want.counts, got.counts)
        assert.same(want.totals, got.totals)
        assert.equal(want.hyp_len, got.hyp_len)
        assert.equal(want.ref_len, got.ref_len)
        assert.near(want.bp, got.bp, 1e-12)
        assert.equal(want.signature, got.signature)
        assert.equal(want.line, tostring(got))
      end)
    end
  end

  it('is 100 for the references themselves, and takes 13a unasked', function()
    local refs = { 'A short sentence of six words.' }
    local got = metrics.bleu(refs, refs)
    assert.near(100, got.score, 1e-9)
    assert.matches('tok:13a', got.signature)
  end)

  it('takes broken UTF-8 as it comes', function()
    assert.near(100, metrics.bleu({ '\255\128 a b c \227' }, { '\255\128 a b c \227' }).score, 1e-9)
    assert.same({ '\255\128', '\227' }, tokenize.char '\128\255\128 \227')
  end)

  it('names what is wrong, at the line of the caller', function()
    local function message(...) return select(2, pcall(metrics.bleu, ...)) end
    assert.matches('bleu: 2 hypotheses, but 1 references', message({ 'a', 'b' }, { 'a' }))
    assert.matches('bleu: no sentences', message({}, {}))
    assert.matches('bleu: refs must be a list', message({ 'a' }, nil))
    assert.matches('bleu: hyps%[2%] is a number', message({ 'a', 1 }, { 'a', 'b' }))
    assert.matches("bleu: no tokenizer 'intl'", message({ 'a' }, { 'a' }, { tokenize = 'intl' }))
    assert.matches("bleu: no option 'tokenise'; there are: tokenize",
      message({ 'a' }, { 'a' }, { tokenise = 'char' }))
    local _, err = pcall(function() metrics.bleu({ 'a' }, {}) end)
    assert.matches('bleu_spec.lua:%d+: bleu:', err)
  end)

  it('knows which languages have no spaces', function()
    assert.equal('char', metrics.tokenizer_for 'ja')
    assert.equal('char', metrics.tokenizer_for 'zh_TW')
    assert.equal('char', metrics.tokenizer_for 'th')
    assert.equal('13a', metrics.tokenizer_for 'de')
    assert.equal('13a', metrics.tokenizer_for 'pt-BR')
  end)
end)
