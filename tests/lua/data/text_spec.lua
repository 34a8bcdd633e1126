local text = require 'lumoe.data.text'

describe('text', function()
  it('encodes code points of every length, and nothing for those that are none', function()
    assert.equal('A', text.utf8_char(0x41))
    assert.equal('é', text.utf8_char(0xE9))
    assert.equal('€', text.utf8_char(0x20AC))
    assert.equal('😀', text.utf8_char(0x1F600))
    assert.equal('', text.utf8_char(0xD800))
    assert.equal('', text.utf8_char(0x110000))
  end)

  it('finds the first byte that is not UTF-8', function()
    for _, good in ipairs { '', 'plain', 'Käse', 'сыр', '치즈', '😀',
      '\239\191\189' } do assert.is_nil(text.invalid_utf8(good)) end
    local bad = {
      ['caf\233'] = 4, -- Latin-1
      ['\192\175'] = 1, -- overlong
      ['\224\128\128'] = 1, -- overlong
      ['a\237\160\128'] = 2, -- surrogate
      ['\244\144\128\128'] = 1, -- beyond U+10FFFF
      ['ab\226\130'] = 3, -- cut off
      ['\128'] = 1, -- no lead
      ['\255'] = 1,
    }
    for s, at in pairs(bad) do assert.equal(at, text.invalid_utf8(s)) end
  end)

  it('squeezes white space, tabs and line breaks, and drops what cannot be seen', function()
    assert.equal('a b c', text.squeeze(' a\t\n b\194\160c\r\n'))
    assert.equal('Wörter', text.squeeze('\239\187\191Wör\194\173ter\226\128\139'))
    assert.equal('à la', text.squeeze('à la')) -- the bytes of à are C3 A0
  end)

  it('strips markup, keeps neighbours apart and decodes entities', function()
    assert.equal('Choose View Sort & go.', text.strip_markup('Choose <gui>View</gui><gui>Sort</gui> &amp; go .'))
    assert.equal('é€"&unknown;', text.strip_markup('&eacute;&#x20AC;&#34;&unknown;'))
    assert.equal('<', text.strip_markup('&lt;'))
  end)
end)
