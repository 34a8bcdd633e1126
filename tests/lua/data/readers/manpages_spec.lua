local directory = require 'tests.lua.data.directory'
local reader = require 'lumoe.data.readers.manpages'
local shell = require 'lumoe.data.shell'
local collect = require 'tests.lua.data.readers.collect'

local function gzip(content)
  local dir = directory { page = content }
  os.execute(('gzip -n %s/page'):format(dir))
  local packed = shell.read(dir .. '/page.gz')
  shell.remove(dir)
  return packed
end

describe('manpages', function()
  it('aligns paragraphs between equal macros', function()
    local english = reader.english {
      ['usr/share/man/man1/cp.1.gz'] = gzip [[
.\" comment
.TH CP 1
.SH NAME
cp \- copy files
.SH DESCRIPTION
Copies \fBSOURCE\fP to
.I DEST
now.
.nf
verbatim
.fi
.PP
The \(lqend\(rq.
]],
    }
    assert.same({
      'de: NAME = BEZEICHNUNG', 'de: cp - copy files = cp - kopiert Dateien', 'de: DESCRIPTION = BESCHREIBUNG',
      'de: Copies SOURCE to DEST now. = Kopiert jetzt QUELLE nach ZIEL.', 'de: The “end”. = Das „Ende“.',
    }, collect(reader, {
      ['usr/share/man/de/man1/cp.1.gz'] = gzip [[
.TH CP 1 de
.SH BEZEICHNUNG
cp \- kopiert Dateien
.SH BESCHREIBUNG
Kopiert jetzt \fBQUELLE\fP nach
.IR ZIEL .
.nf
wörtlich
.fi
.PP
Das „Ende“.
]],
      ['usr/share/man/de/man1/mv.1.gz'] = gzip '.SH X\n',
    }, english))
  end)

  it('wants English pages and those of its languages', function()
    assert.is_true(reader.wants('usr/share/man/man1/a.1.gz', {}))
    assert.is_true(reader.wants('usr/share/man/pt_BR/man8/a.8.gz', { pt_BR = true }))
    assert.is_false(reader.wants('usr/share/man/fr/man1/a.1.gz', { de = true }))
  end)
end)
