local reader = require 'lumoe.data.readers.ddtp'
local collect = require 'tests.lua.data.readers.collect'

local english = [[
Package: first
Description-md5: 0123ab
Description-en: small tool
 It does one thing
 on two lines.
 .
 Features:
  * fast start
  * small
    size

Package: second
Description-md5: 4567cd
Description-en: other tool
 One paragraph.
]]
local german = [[
Package: first
Description-md5: 0123ab
Description-de: kleines Werkzeug
 Es macht eine Sache
 auf zwei Zeilen.
 .
 Funktionen:
  * schneller Start
  * kleine
    Größe

Package: second
Description-md5: 4567cd
Description-de: anderes Werkzeug
 Ein Absatz.
 .
 Noch einer.

Package: third
Description-md5: 89ef01
Description-de: unbekannt
 Fehlt im Englischen.
]]

describe('ddtp', function()
  it('aligns by md5 and paragraph; only titles where the paragraphs differ in number', function()
    assert.same({
      'de: small tool = kleines Werkzeug', 'de: It does one thing on two lines. = Es macht eine Sache auf zwei Zeilen.',
      'de: Features: = Funktionen:', 'de: fast start = schneller Start', 'de: small size = kleine Größe',
      'de: other tool = anderes Werkzeug',
    }, collect(reader, { ['main_i18n_Translation-de'] = german }, reader.english { ['main_i18n_Translation-en'] = english }))
  end)
end)
