local reader = require 'lumoe.data.readers.libreoffice_help'
local collect = require 'tests.lua.data.readers.collect'

local base = 'usr/share/libreoffice/help/'

describe('libreoffice_help', function()
  it('aligns by page and id, and skips what is not translated', function()
    local english = reader.english {
      [base .. 'en-US/text/swriter/main.html'] = [[<h1 id="hd_id1"><span>Main Page</span></h1><p id="par_id2" class="x">Press <b>Enter</b>.</p>
        <p id="par_id3">Only English</p><p id="par_id5">Same</p><p id="other">No text</p>]],
    }
    assert.same({ 'de: Main Page = Hauptseite', 'de: Press Enter. = Drücken Sie die Eingabetaste.' }, collect(reader, {
      [base .. 'de/text/swriter/main.html'] = [[<p id="par_id9">Nur Deutsch</p><h1 id="hd_id1">Hauptseite</h1><p id="par_id5">Same</p>
        <p class="x" id="par_id2">Drücken Sie die <b>Eingabetaste</b>.</p><p id="par_id2">zweimal</p><p id="other">kein Text</p>]],
      [base .. 'de/text/swriter/extra.html'] = [[<p id="par_id2">Seite ohne Englisch</p>]],
    }, english))
  end)

  it('wants the pages of its languages', function()
    assert.is_true(reader.wants(base .. 'en-US/text/a.html', {}))
    assert.is_true(reader.wants(base .. 'pt-BR/text/a.html', { pt_BR = true }))
    assert.is_false(reader.wants(base .. 'fr/text/a.html', { de = true }))
    assert.is_false(reader.wants(base .. 'ca-valencia/text/a.html', { ca = true }))
    assert.is_false(reader.wants(base .. 'de/media/a.png', { de = true }))
  end)
end)
