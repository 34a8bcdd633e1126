local languages = require 'lumoe.data.languages'

describe('languages', function()
  it('reads locale names', function()
    for locale, code in pairs {
      de = 'de', ['de_DE.UTF-8'] = 'de', ['pt-BR'] = 'pt_BR', pt = 'pt', zh_CN = 'zh', ['zh-tw'] = 'zh_TW', no = 'nb',
        iw = 'he', en_GB = 'en_GB',
      C = false, es_MX = false, ['sr@latin'] = false, ['ca-valencia'] = false, de_CH = false,
    } do
      assert.equal(code or nil, languages.of_locale(locale), locale)
    end
  end)

  it('reads lists and presets', function()
    assert.same({ 'de', 'fr', 'es', 'it' }, languages.parse('4'))
    assert.same({ 'de', 'pt_BR' }, languages.parse('de, pt-br,de,en'))
    assert.equal(8, #languages.parse('8'))
    assert.equal(50, #languages.parse('50'))
  end)

  it('knows which languages packages may have texts in', function()
    for name in pairs(languages.presets) do languages.check_known(languages.parse(name)) end
    languages.check_known { 'eo', 'ast', 'pt_BR', 'zh_TW', 'sw' }
    assert.error_matches(function() languages.check_known { 'de', 'xx' } end, "no texts in 'xx'; those with the most are it da fr")
  end)

  it('names what is no language', function()
    assert.error_matches(function() languages.parse('de,english') end, '"english" is no language code')
    assert.error_matches(function() languages.parse('en') end, 'none given beside English')
  end)
end)
