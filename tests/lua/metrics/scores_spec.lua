local cjson = require 'cjson'
local metrics = require 'lumoe.metrics'

local REFS = {
  'Open the file and save it.', 'The cat sat on the mat today.', 'Choose a new name for the folder.',
  'Nothing else was found here.',
}
local HYPS = {
  'Open the file and save it.', 'The cat sat on a mat today.', 'Choose a name for the new folder.',
  'Something else was seen there.',
}
local TM = { 'Open the file and save it.', 'A dog.', 'Choose a colour for the folder.', '' }

local function row(direction)
  return metrics.evaluate {
    direction = direction, hyps = HYPS, refs = REFS, tm = TM,
    novel = { false, true, true, true }, pieces = { 8, 9, 48, 49 },
  }
end

describe('scores.evaluate', function()
  it('scores all sentences, the novel ones, and the short novel ones', function()
    local got = row 'de-en'
    local function bleu(list, from, to)
      return metrics.bleu({ unpack(list, from, to) }, { unpack(REFS, from, to) }).score
    end
    assert.equal(4, got.sentences)
    assert.equal(3, got.novel)
    assert.equal(2, got.novel_48)
    assert.equal(bleu(HYPS, 1, 4), got.bleu)
    assert.equal(bleu(HYPS, 2, 4), got.bleu_novel)
    assert.equal(bleu(HYPS, 2, 3), got.bleu_novel_48)
    assert.equal(bleu(TM, 1, 4), got.tm)
    assert.equal(bleu(TM, 2, 3), got.tm_novel_48)
    assert.equal(metrics.chrf(HYPS, REFS).score, got.chrf)
    assert.is_true(got.bleu > got.tm)
  end)

  it('leaves out what it was not given, or has no sentences for', function()
    local got = metrics.evaluate { direction = 'en-ja', hyps = HYPS, refs = REFS }
    assert.is_nil(got.bleu_novel)
    assert.is_nil(got.tm)
    assert.matches('tok:char', got.signature)
    local none = metrics.evaluate {
      direction = 'de-en', hyps = HYPS, refs = REFS, novel = { false, false, false, false },
    }
    assert.equal(0, none.novel)
    assert.is_nil(none.bleu_novel)
  end)

  it('refuses lists that do not fit', function()
    local _, message = pcall(function()
      metrics.evaluate { direction = 'de-en', hyps = HYPS, refs = REFS, novel = { true } }
    end)
    assert.matches('scores_spec.lua:%d+: evaluate: novel has 1 entries, but there are 4 references', message)
    assert.error_matches(function()
      metrics.evaluate { direction = 'deen', hyps = HYPS, refs = REFS }
    end, "direction 'deen' is not <source>%-<target>")
    assert.error_matches(function()
      metrics.evaluate { direction = 'de-en', hyps = HYPS }
    end, "option 'refs' %(a table%) is missing")
  end)
end)

describe('scores.table', function()
  it('aligns columns, adds means, and ends with the signatures', function()
    local text = metrics.table { row 'de-en', row 'fr-en', row 'en-ja' }
    local lines = {}
    for line in text:gmatch '[^\n]+' do lines[#lines + 1] = line end
    assert.matches('^direction +sentences +BLEU +chrF +novel', lines[1])
    local function width(line) return #line:gsub('[\128-\191]', '') end
    for i = 2, 7 do assert.equal(width(lines[1]), width(lines[i]), lines[i]) end
    assert.matches('^mean → en +8 ', lines[7])
    assert.equal(10, #lines) -- heading, rule, 3 rows, rule, 1 mean, 3 signatures
    assert.matches('BLEU|nrefs:1.*tok:13a', lines[8])
    assert.matches('BLEU|nrefs:1.*tok:char', lines[9])
    assert.matches('chrF2|nrefs:1', lines[10])
  end)

  it('shows only columns that some row has', function()
    local text = metrics.table { metrics.evaluate { direction = 'de-en', hyps = HYPS, refs = REFS } }
    assert.not_matches('novel', text)
    assert.not_matches('mean', text)
  end)

  it('takes a mean over the rows that have a value', function()
    local without = metrics.evaluate { direction = 'fr-en', hyps = HYPS, refs = REFS }
    local text = metrics.table { row 'de-en', without }
    assert.matches(('mean → en[^\n]*  %.2f'):format(row('de-en').tm), text)
  end)
end)

describe('scores.write', function()
  it('writes JSON with null for what could not be scored', function()
    local path = os.tmpname()
    local japanese = metrics.evaluate { direction = 'en-ja', hyps = HYPS, refs = REFS }
    metrics.write_scores(path, { row 'de-en', japanese })
    local file = assert(io.open(path))
    local text = file:read '*a'
    file:close()
    os.remove(path)
    local got = cjson.decode(text)
    assert.near(row('de-en').bleu, got['de-en'].bleu, 1e-4)
    assert.near(row('de-en').bleu_novel_48, got['de-en'].bleu_novel_48, 1e-4)
    assert.equal(cjson.null, got['en-ja'].bleu_novel)
    assert.matches('tok:char', got['en-ja'].signature)
    assert.is_true(text:find('de-en', 1, true) < text:find('en-ja', 1, true))
  end)
end)
