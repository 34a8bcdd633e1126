local reader = require 'lumoe.data.readers.gettext_mo'
local collect = require 'tests.lua.data.readers.collect'

local function number(value, big)
  local bytes = string.char(value % 256, math.floor(value / 256) % 256, math.floor(value / 65536) % 256, math.floor(value / 16777216))
  return big and bytes:reverse() or bytes
end

-- A catalogue as msgfmt would write it.
local function catalogue(messages, big)
  local count = #messages
  local originals, translations, strings, at = '', '', '', 28 + 16 * count
  for _, message in ipairs(messages) do
    originals = originals .. number(#message[1], big) .. number(at, big)
    strings, at = strings .. message[1] .. '\0', at + #message[1] + 1
    translations = translations .. number(#message[2], big) .. number(at, big)
    strings, at = strings .. message[2] .. '\0', at + #message[2] + 1
  end
  return number(0x950412de, big) .. number(0, big) .. number(count, big) .. number(28, big) .. number(28 + 8 * count, big)
    .. number(0, big) .. number(0, big) .. originals .. translations .. strings
end

local path = 'usr/share/locale/de/LC_MESSAGES/x.mo'

describe('gettext_mo', function()
  it('reads messages of both byte orders, without header, context, plural and access key', function()
    local messages = {
      { '', 'Project-Id-Version: x\n' }, { '_Open the file', 'Datei ö_ffnen' }, { 'menu\4Save _all', 'Alles (_S)' },
      { '%d file\0%d files', '%d Datei\0%d Dateien' }, { 'snake_case_name', 'snake_case_name2' }, { 'untranslated', '' },
      { 'unit^Elvish Archer', 'Elfischer Bogenschütze' }, { 'One.\n\nTwo.', 'Eins.\n\nZwei.' },
    }
    local expected = {
      'de: Open the file = Datei öffnen', 'de: Save all = Alles', 'de: %d file = %d Datei', 'de: snake_case_name = snake_case_name2',
      'de: Elvish Archer = Elfischer Bogenschütze', 'de: One. = Eins.', 'de: Two. = Zwei.',
    }
    assert.same(expected, collect(reader, { [path] = catalogue(messages) }))
    assert.same(expected, collect(reader, { [path] = catalogue(messages, true) }))
  end)

  it('reads nothing from what is no catalogue', function()
    assert.same({}, collect(reader, { [path] = ('no catalogue'):rep(10) }))
    assert.same({}, collect(reader, { [path] = catalogue({ { 'a', 'b' } }):sub(1, 36) }))
  end)

  it('finds the language in the path', function()
    assert.is_true(reader.wants(path, { de = true }))
    assert.is_true(reader.wants('usr/lib/libreoffice/program/resource/pt_BR/LC_MESSAGES/a.mo', { pt_BR = true }))
    assert.is_true(reader.wants('usr/share/wordpress/wp-content/languages/de_DE.mo', { de = true }))
    assert.is_true(reader.wants('usr/share/wordpress/languages/admin-fr_FR.mo', { fr = true }))
    assert.is_false(reader.wants('usr/share/locale/sr@latin/LC_MESSAGES/x.mo', { sr = true }))
    assert.is_false(reader.wants('usr/share/locale/de/LC_MESSAGES/x.po', { de = true }))
  end)
end)
