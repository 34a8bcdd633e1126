local reader = require 'lumoe.data.readers.gnome_help'
local collect = require 'tests.lua.data.readers.collect'

local english = [[<?xml version="1.0"?><!DOCTYPE page [ <!ENTITY x "<p>y</p>"> ]>
  <page><info><credit><name>Someone</name></credit><desc>Join a network.</desc></info><title>Networks</title>
  <p>Click <gui>Settings</gui>.</p><!-- <p>hidden</p> --><code>x = 1</code><media src="a.png"/></page>]]

describe('gnome_help', function()
  it('aligns pages of equal skeleton', function()
    local german = [[<page><info><desc>Einem Netzwerk beitreten.</desc><mal:credit><p>Übersetzung</p></mal:credit></info><title>Netzwerke</title>
      <p>Klicken Sie auf <gui>Einstellungen</gui>.</p><code>x = 2</code><media src="b.png"/></page>]]
    assert.same({ 'de: Join a network. = Einem Netzwerk beitreten.', 'de: Networks = Netzwerke',
      'de: Click Settings. = Klicken Sie auf Einstellungen.' },
      collect(reader, { ['usr/share/help/C/app/net.page'] = english, ['usr/share/help/de/app/net.page'] = german }))
  end)

  it('leaves pages of another skeleton', function()
    local german = [[<page><info><desc>Einem Netzwerk beitreten.</desc></info><title>Netzwerke</title></page>]]
    assert.same({}, collect(reader, { ['usr/share/help/C/app/net.page'] = english, ['usr/share/help/de/app/net.page'] = german }))
  end)

  it('wants English and its languages', function()
    assert.is_true(reader.wants('usr/share/help/C/a/b.page', {}))
    assert.is_true(reader.wants('usr/share/help/zh_CN/a/b.docbook', { zh = true }))
    assert.is_false(reader.wants('usr/share/help/de/a/b.png', { de = true }))
    assert.is_false(reader.wants('usr/share/help/sr@latin/a/b.page', { sr = true }))
  end)
end)
