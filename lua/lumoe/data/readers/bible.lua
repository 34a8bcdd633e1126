--- Bible verses out of SWORD zText modules: verse n of one module is verse n of another with the same versification.
-- A testament is three files: .bzs, 12 bytes a block (offset, compressed and plain size); .bzv, 10 bytes a verse (block,
-- offset in it, size); .bzz, the blocks, each a zlib stream. Verses are OSIS XML. All numbers are little-endian.
local text = require 'lumoe.data.text'
local zlib = require 'lumoe.data.zlib'

local reader = {}

local language_of = { spaRV1909eb = 'es' } -- English is engKJV2006eb; both have the King James versification

local function parse_path(path)
  return path:match('^usr/share/sword/modules/texts/ztext/([^/]+)/([on]t)%.bz([svz])$')
end

---@param path string
function reader.wants(path) return parse_path(path) ~= nil end

local function number(s, at, bytes)
  local value = 0
  for i = bytes - 1, 0, -1 do value = value * 256 + s:byte(at + i) end
  return value
end

local function plain(osis)
  osis = osis:gsub('<note.-</note>', ''):gsub('<title.-</title>', '')
  return text.strip_markup((osis:gsub('¶', '')))
end

-- The verses of a testament; '' for headings and missing ones.
local function verses(blocks, index, data, list)
  local inflated = {}
  for at = 1, #index - 9, 10 do
    local block, start, size = number(index, at, 4), number(index, at + 4, 4), number(index, at + 8, 2)
    local verse = ''
    if size > 0 then
      if not inflated[block] then
        local offset, length = number(blocks, 12 * block + 1, 4), number(blocks, 12 * block + 5, 4)
        inflated[block] = assert(zlib.inflate(data:sub(offset + 1, offset + length), 'zlib'))
      end
      verse = plain(inflated[block]:sub(start + 1, start + size))
    end
    list[#list + 1] = verse
  end
end

-- module -> verses, the Old Testament's first
local function modules(files)
  local parts, found = {}, {}
  for path, content in pairs(files) do
    local module, testament, part = parse_path(path)
    parts[module .. testament .. part] = content
    found[module] = {}
  end
  for module, list in pairs(found) do
    for _, testament in ipairs { 'ot', 'nt' } do
      local base = module .. testament
      if parts[base .. 'v'] then verses(parts[base .. 's'], parts[base .. 'v'], parts[base .. 'z'], list) end
    end
  end
  return found
end

--- The English verses.
---@param files table<string, string>
---@return string[]
function reader.english(files)
  local _, list = next(modules(files))
  return list
end

---@param input { files: table<string, string>, english: string[], emit: fun(lang: string, english: string, foreign: string) }
function reader.read(input)
  for module, list in pairs(modules(input.files)) do
    if language_of[module] and #list == #input.english then
      for i, verse in ipairs(list) do
        if verse ~= '' and input.english[i] ~= '' then input.emit(language_of[module], input.english[i], verse) end
      end
    end
  end
end

return reader
