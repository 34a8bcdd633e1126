local reader = require 'lumoe.data.readers.debian_docs'
local collect = require 'tests.lua.data.readers.collect'

describe('debian_docs', function()
  it('aligns a book whose languages are in one package', function()
    local base = 'usr/share/doc/debian-handbook/html/'
    assert.same({ 'de: Title = Titel', 'de: Some text. = Etwas Text.' }, collect(reader, {
      [base .. 'en-US/a.html'] = '<head><title>x</title></head><h1>Title</h1><pre>code</pre><p>Some <em>text</em>.</p>',
      [base .. 'de-DE/a.html'] = '<head><title>y</title></head><h1>Titel</h1><pre>Kode</pre><p>Etwas <em>Text</em>.</p>',
    }, {}))
  end)

  it('aligns books whose English is a package of its own', function()
    local english = reader.english {
      ['usr/share/debian-reference/ch01.en.html'] = '<p>One.</p>', ['usr/share/doc/debian/FAQ/basic.en.html'] = '<p>Two.</p>',
      ['usr/share/developers-reference/index.html'] = '<p>Three.</p>',
        ['usr/share/doc/maint-guide/html/start.en.html'] = '<p>Four.</p>',
    }
    assert.same({ 'de: One. = Eins.', 'de: Three. = Drei.', 'de: Two. = Zwei.', 'de: Four. = Vier.' }, collect(reader, {
      ['usr/share/debian-reference/ch01.de.html'] = '<p>Eins.</p>', ['usr/share/doc/debian/FAQ/de/basic.de.html'] = '<p>Zwei.</p>',
      ['usr/share/developers-reference/de/index.html'] = '<p>Drei.</p>',
        ['usr/share/doc/maint-guide-de/html/start.de.html'] = '<p>Vier.</p>',
    }, english))
  end)

  it('wants English and its languages', function()
    assert.is_true(reader.wants('usr/share/doc/installation-guide-amd64/en/ch01.html', {}))
    assert.is_true(reader.wants('usr/share/debian-reference/ch01.zh-cn.html', { zh = true }))
    assert.is_false(reader.wants('usr/share/debian-reference/ch01.fr.html', { de = true }))
    assert.is_false(reader.wants('usr/share/doc/other/index.html', { de = true }))
  end)
end)
