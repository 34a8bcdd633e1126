local directory = require 'tests.lua.data.directory'
local reader = require 'lumoe.data.readers.mozilla'
local shell = require 'lumoe.data.shell'
local zip = require 'lumoe.data.zip'
local collect = require 'tests.lua.data.readers.collect'

local function little(value, bytes)
  local s = ''
  for _ = 1, bytes do
    s = s .. string.char(value % 256)
    value = math.floor(value / 256)
  end
  return s
end

-- The deflate stream of a gzip file is what a zip archive holds.
local function deflate(content)
  local dir = directory { x = content }
  os.execute(('gzip -n %s/x'):format(dir))
  local packed = shell.read(dir .. '/x.gz')
  shell.remove(dir)
  return packed:sub(11, -9)
end

local function archive(files)
  local data, index, count = '', '', 0
  for name, content in pairs(files) do
    local method = #content > 40 and 8 or 0
    local packed = method == 8 and deflate(content) or content
    local sizes = little(0, 4) .. little(#packed, 4) .. little(#content, 4) .. little(#name, 2)
    index = index .. 'PK\1\2' .. little(20, 2) .. little(20, 2) .. little(0, 2) .. little(method, 2) .. little(0, 4)
      .. sizes .. little(0, 2)
      .. little(0, 2) .. little(0, 8) .. little(#data, 4) .. name
    data = data .. 'PK\3\4' .. little(20, 2) .. little(0, 2) .. little(method, 2) .. little(0, 4) .. sizes .. little(0, 2)
      .. name .. packed
    count = count + 1
  end
  return data .. index .. 'PK\5\6' .. little(0, 4) .. little(count, 2) .. little(count, 2) .. little(#index, 4)
    .. little(#data, 4) .. little(0, 2)
end

local base = 'usr/lib/firefox-esr/browser/extensions/langpack-'

describe('mozilla', function()
  local english, german

  setup(function()
    english = { [base .. 'en-GB@firefox-esr.mozilla.org.xpi'] = archive {
      ['localization/en-GB/a.ftl'] = '# comment\nwelcome = Welcome to { -brand-short-name }\n  and good day\n    .label = Hello\n'
        .. '    .accesskey = H\ncount = { $n ->\n  [one] a\n }\n',
      ['chrome/en-GB/b.properties'] = '! x\nAlert = Look out\nCaf = caf\\u00e9',
    } }
    german = { [base .. 'de@firefox-esr.mozilla.org.xpi'] = archive {
      ['localization/de/a.ftl'] = 'welcome = Willkommen bei { -brand-short-name }\n  und guten Tag\n'
        .. '    .label = Hallo\n    .accesskey = a\n'
        .. 'only = Nur hier\n',
      ['chrome/de/b.properties'] = 'Alert = Achtung\nCaf = Kaffee',
    } }
  end)

  it('aligns by file and key', function()
    local list = collect(reader, german, reader.english(english))
    table.sort(list)
    assert.same({
      'de: Hello = Hallo', 'de: Look out = Achtung',
        'de: Welcome to Firefox and good day = Willkommen bei Firefox und guten Tag', 'de: café = Kaffee',
    }, list)
  end)

  it('wants packs of its languages and the English one', function()
    assert.is_true(reader.wants(base .. 'en-GB@firefox-esr.mozilla.org.xpi', {}))
    assert.is_true(reader.wants(base .. 'pt-BR@firefox-esr.mozilla.org.xpi', { pt_BR = true }))
    assert.is_false(reader.wants(base .. 'es-MX@firefox-esr.mozilla.org.xpi', { es = true }))
  end)

  it('names what is no zip archive', function()
    assert.error_matches(function() zip.read('nothing', function() return true end) end, 'not a zip archive')
  end)
end)
