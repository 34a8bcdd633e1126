local reader = require 'lumoe.data.readers.mediawiki'
local collect = require 'tests.lua.data.readers.collect'

local base = 'usr/share/mediawiki/languages/i18n/'

describe('mediawiki', function()
  it('aligns by key, reads links as their text, leaves templates', function()
    assert.same({ "de: See the help = Siehe die Hilfe", 'de: Two words = Zwei Wörter' }, collect(reader, {
      [base .. 'en.json'] = [=[{
        "@metadata": {"authors": ["a"]}, "a": "See [[Help:Contents|the help]]", "b": "''Two'' words", "c": "{{PLURAL}}", "d": "x"
      }]=],
      [base .. 'de.json'] = [=[{
        "@metadata": {}, "a": "Siehe [[Hilfe|die Hilfe]]", "b": "Zwei '''Wörter'''", "c": "{{PLURAL}}", "e": "y"
      }]=],
      [base .. 'fr.json'] = 'not json',
    }))
  end)

  it('wants messages, but not of dialects', function()
    assert.is_true(reader.wants(base .. 'en.json', {}))
    assert.is_true(reader.wants(base .. 'zh-hans.json', { zh = true }))
    assert.is_false(reader.wants(base .. 'de-formal.json', { de = true }))
    assert.is_false(reader.wants(base .. 'qqq.json', { de = true }))
  end)
end)
