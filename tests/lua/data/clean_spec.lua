local clean = require 'lumoe.data.clean'

local function run(english, foreign, lang)
  local kept, reasons = {}, {}
  clean.sentences(english, foreign, lang, function(e, f) kept[#kept + 1] = e .. ' = ' .. f end,
    function(r) reasons[#reasons + 1] = r end)
  return kept, reasons
end

describe('clean', function()
  it('keeps real translations in any script', function()
    for lang, foreign in pairs {
      de = 'Dies ist ein kurzer Satz.', ru = 'Это короткое предложение.', el = 'Αυτή είναι μια σύντομη πρόταση.',
        ja = 'これは短い文です。',
      zh = '这是一个短句。', ko = '이것은 짧은 문장입니다.', hi = 'यह एक छोटा वाक्य है।', ar = 'هذه جملة قصيرة.',
        he = 'זה משפט קצר.',
      ka = 'ეს არის მოკლე წინადადება.', th = 'นี่คือประโยคสั้น', vi = 'Đây là một câu ngắn.',
        ta = 'இது ஒரு சிறிய வாக்கியம்.',
    } do
      assert.is_nil(clean.reason('This is a short sentence.', foreign, lang), lang)
    end
  end)

  it('says why it rejects', function()
    local function reason(english, foreign, lang) return clean.reason(english, foreign, lang or 'de') end
    assert.equal('same', reason('Copy all the files', 'Copy all the files'))
    assert.equal('same', reason('Copy all the files', 'Copy all the Dateien'))
    assert.equal('same', reason('copy all The files', 'Copy all the files'))
    assert.equal('short', reason('Two words', 'Zwei Wörter'))
    assert.equal('long', reason(('word '):rep(61), ('Wort '):rep(61)))
    assert.equal('markup', reason('Copied %d of them', 'Davon %d kopiert'))
    assert.equal('markup', reason('Use the --force option', 'Nutzen Sie die Option --force'))
    assert.equal('letters', reason('It is 12345 6789', 'Es ist 12345 6789'))
    assert.equal('ratio', reason('This is an ordinary sentence of a few words.', 'Ein Satz.'))
    assert.equal('script', reason('This is a short sentence.', 'Dies ist ein kurzer Satz.', 'ru'))
    assert.equal('script', reason('This is a short sentence.', 'Это короткое предложение.', 'de'))
  end)

  it('cuts paragraphs into sentences where both sides have as many', function()
    local kept = run('Open the first file. Then close the other one.',
      'Öffnen Sie die erste Datei. Schließen Sie dann die andere.', 'de')
    assert.same({ 'Open the first file. = Öffnen Sie die erste Datei.',
      'Then close the other one. = Schließen Sie dann die andere.' }, kept)
    kept = run('Open the first file. Then close the other one.', '最初のファイルを開きます。次に他のファイルを閉じます。',
      'ja')
    assert.equal(2, #kept)
    kept = run('Open the first file. Then close the other one.', 'Öffnen Sie die erste Datei und schließen Sie die andere.', 'de')
    assert.equal(1, #kept)
  end)

  it('takes list marks and outer quotation marks away', function()
    local bare = { 'Open the first file = Die erste Datei öffnen' }
    assert.same(bare, (run('- Open the first file', '• Die erste Datei öffnen', 'de')))
    assert.same(bare, (run('"Open the first file"', '„Die erste Datei öffnen“', 'de')))
  end)
end)
