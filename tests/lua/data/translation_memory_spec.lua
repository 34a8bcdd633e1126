local directory = require 'tests.lua.data.directory'
local shell = require 'lumoe.data.shell'
local translation_memory = require 'lumoe.data.translation_memory'

describe('translation_memory', function()
  it('answers with the translation of the nearest source', function()
    local memory = translation_memory.new({ { 'Öffnen Sie die Datei.', 'Open the file.' }, { 'Das Fenster schließen',
      'Close the window' } }, 'de')
    assert.equal('Open the file.', (memory:translate 'ÖFFNEN Sie jetzt die Datei'))
    local hypothesis, jaccard = memory:translate 'das fenster'
    assert.equal('Close the window', hypothesis)
    assert.near(2 / 3, jaccard, 1e-12)
  end)

  it('copies the source where no word is shared', function()
    local hypothesis, jaccard = translation_memory.new({ { 'eins', 'one' } }, 'de'):translate 'Lumoe 2'
    assert.equal('Lumoe 2', hypothesis)
    assert.equal(0, jaccard)
  end)

  it('lowers Latin, Greek and Cyrillic letters, and takes unspaced scripts by character', function()
    assert.equal('größe àé', translation_memory.key('GRÖßE ÀÉ', 'de'))
    assert.equal('αβγ ω', translation_memory.key('ΑΒΓ Ω', 'el'))
    assert.equal('ёлка привет', translation_memory.key('Ёлка ПРИВЕТ!', 'ru'))
    assert.equal(' 開 く abc', translation_memory.key('開くabc', 'ja'))
  end)

  it('reads prepared data in both directions', function()
    local dir = directory {
      ['train.de.tsv'] = 'Open the file\tDatei öffnen\tx\nClose it\tSchließen\tx\n',
      ['test.de.tsv'] = 'Open a file\tEine Datei öffnen\tx\t0.50\nClose it now\tJetzt schließen\tx\t0.67\n',
    }
    local hypotheses, references, novel = translation_memory.hypotheses(dir, 'de', 'into')
    assert.same({ 'Open the file', 'Close it' }, hypotheses)
    assert.same({ 'Open a file', 'Close it now' }, references)
    assert.same({ true, false }, novel)
    hypotheses, references = translation_memory.hypotheses(dir, 'de', 'from')
    assert.same({ 'Datei öffnen', 'Schließen' }, hypotheses)
    assert.same({ 'Eine Datei öffnen', 'Jetzt schließen' }, references)
    assert.error_matches(function() translation_memory.hypotheses(dir, 'de', 'to') end, "neither 'into' nor 'from'")
    shell.remove(dir)
  end)
end)
