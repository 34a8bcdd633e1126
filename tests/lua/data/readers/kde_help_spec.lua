local reader = require 'lumoe.data.readers.kde_help'
local collect = require 'tests.lua.data.readers.collect'

local base = 'usr/share/doc/HTML/'

describe('kde_help', function()
  it('reads names for entities, and stops before the credits that translators add', function()
    local english = '<book><chapter><title>First</title>' .. ('<para>Use &konqueror; now.</para>'):rep(8)
      .. '<para>End.</para></chapter></book>'
    local german = '<book><chapter><title>Erstes</title>' .. ('<para>Nutzen Sie jetzt &konqueror;.</para>'):rep(8)
      .. '<note><para>Übersetzung</para></note></chapter></book>'
    local list = collect(reader, { [base .. 'en/app/index.docbook'] = english, [base .. 'de/app/index.docbook'] = german })
    assert.equal('de: First = Erstes', list[1])
    assert.equal('de: Use konqueror now. = Nutzen Sie jetzt konqueror.', list[2])
    assert.equal(7, #list) -- 10 of 11 blocks are equal, two are a margin, and the chapter itself has no text
  end)

  it('leaves a page that differs early, or has no English one', function()
    local page = '<chapter><para>One.</para><para>Two.</para><para>Three.</para></chapter>'
    assert.same({}, collect(reader, {
      [base .. 'en/app/index.docbook'] = page, [base .. 'de/app/index.docbook'] = '<chapter><note>x</note></chapter>',
      [base .. 'de/app/other.docbook'] = page,
    }))
  end)

  it('wants handbooks of its languages', function()
    assert.is_true(reader.wants(base .. 'en/a/index.docbook', {}))
    assert.is_true(reader.wants(base .. 'pt_BR/a/index.docbook', { pt_BR = true }))
    assert.is_false(reader.wants(base .. 'en_GB/a/index.docbook', { de = true }))
    assert.is_false(reader.wants(base .. 'de/a/x.png', { de = true }))
  end)
end)
