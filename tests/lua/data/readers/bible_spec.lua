local ffi = require 'ffi'
local reader = require 'lumoe.data.readers.bible'
local collect = require 'tests.lua.data.readers.collect'

ffi.cdef 'int lumoe_test_compress(uint8_t *to, unsigned long *size, const char *from, unsigned long n) __asm__("compress");'
local z = ffi.load 'libz.so.1'

local function compress(s)
  local out, size = ffi.new('uint8_t[?]', #s + 100), ffi.new('unsigned long[1]', #s + 100)
  assert.equal(0, z.lumoe_test_compress(out, size, s, #s))
  return ffi.string(out, size[0])
end

local function little(value, bytes)
  local s = ''
  for _ = 1, bytes do
    s = s .. string.char(value % 256)
    value = math.floor(value / 256)
  end
  return s
end

-- A testament of two blocks.
local function testament(module, name, first, second)
  local blocks, index, data = '', '', ''
  for b, list in ipairs { first, second } do
    local plain = table.concat(list)
    local packed, at = compress(plain), 0
    blocks = blocks .. little(#data, 4) .. little(#packed, 4) .. little(#plain, 4)
    data = data .. packed
    for _, verse in ipairs(list) do
      index = index .. little(b - 1, 4) .. little(at, 4) .. little(#verse, 2)
      at = at + #verse
    end
  end
  local base = ('usr/share/sword/modules/texts/ztext/%s/%s.bz'):format(module, name)
  return { [base .. 's'] = blocks, [base .. 'v'] = index, [base .. 'z'] = data }
end

describe('bible', function()
  it('aligns verses by index, without notes, titles and empty ones', function()
    local english = testament('engKJV2006eb', 'nt', { '<title>One</title>',
      '<w>In</w> the <w>beginning</w>.<note>n</note>' }, { 'Second.', 'Third.' })
    local spanish = testament('spaRV1909eb', 'nt', { '<title>Uno</title>', '¶ EN el <i>principio</i>.' }, { 'Segundo.', '' })
    for path in pairs(spanish) do assert.is_true(reader.wants(path)) end
    assert.is_false(reader.wants('usr/share/sword/mods.d/x.conf'))
    assert.same({ 'es: In the beginning. = EN el principio.', 'es: Second. = Segundo.' }, collect(reader, spanish,
      reader.english(english)))
  end)

  it('leaves modules of another versification', function()
    local english = testament('engKJV2006eb', 'nt', { 'One.' }, { 'Two.' })
    assert.same({}, collect(reader, testament('spaRV1909eb', 'nt', { 'Uno.' }, { 'Dos.', 'Tres.' }), reader.english(english)))
  end)
end)
