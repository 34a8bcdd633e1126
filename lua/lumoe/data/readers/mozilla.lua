--- Firefox's and Thunderbird's language packs (.xpi): the same file and key in each language. English is the en-GB pack.
local languages = require 'lumoe.data.languages'
local text = require 'lumoe.data.text'
local zip = require 'lumoe.data.zip'

local reader = {}

local function locale_of(path) return path:match('/langpack%-([%a%-]+)@[^/]*%.xpi$') end

---@param path string
---@param langs table<string, boolean>
function reader.wants(path, langs)
  local locale = locale_of(path)
  local lang = locale and languages.of_locale(locale)
  return lang ~= nil and (lang == 'en_GB' or langs[lang] == true)
end

-- Fluent: `key = value`, indented lines go on with it, `.attribute = value` under it. Keys of terms begin with a dash.
local function fluent(content, set)
  local key, attribute = nil, ''
  for line in (content .. '\n'):gmatch('([^\n]*)\n') do
    local name, value = line:match('^(%-?%a[%w_%-]*)%s*=%s?(.*)$')
    local part, part_value = line:match('^%s+%.(%a[%w_%-]*)%s*=%s?(.*)$')
    if name then
      key, attribute = name, ''
      set(key, value)
    elseif part and key then
      attribute = '.' .. part
      set(key .. attribute, part_value)
    elseif key and line:find('^%s+%S') then
      set(key .. attribute, ' ' .. line:gsub('^%s+', ''), true)
    elseif line:find('%S') then
      key = nil
    end
  end
end

local function properties(content, set)
  for line in (content .. '\n'):gmatch('([^\n]*)\n') do
    local key, value = line:match('^%s*([^#!%s=:][^=:]-)%s*=%s*(.*)$')
    if key then
      value = value:gsub('\\u(%x%x%x%x)', function(hex) return text.utf8_char(tonumber(hex, 16)) end):gsub('\\n', ' ')
      set(key, value)
    end
  end
end

local function is_label(key) return not (key:find('%.accesskey$') or key:find('%.key$') or key:find('%.style$') or key:find('%.width$')) end

-- Program names are terms in braces; the text reads on with the name.
local function fill_names(value)
  return (value:gsub('{%s*%-brand[%w%-]*%s*}', 'Firefox'):gsub('{%s*%-%a[%w%-]*name[%w%-]*%s*}', 'Firefox'))
end

-- file@key -> text of one pack. Values with variants (->) are none.
local function entries(archive, locale)
  local found = {}
  local function wanted(name) return name:find('%.ftl$') ~= nil or name:find('%.properties$') ~= nil end
  for name, content in pairs(zip.read(archive, wanted)) do
    local place = ('/' .. name):gsub('/' .. locale:gsub('%-', '%%-') .. '/', '/@/')
    local function set(key, value, more)
      local id = place .. '\t' .. key
      found[id] = more and (found[id] or '') .. value or value
    end
    if name:find('%.ftl$') then fluent(content, set) else properties(content, set) end
  end
  for id, value in pairs(found) do
    found[id] = not value:find('->', 1, true) and is_label(id) and text.strip_markup(fill_names(value)) or nil
  end
  return found
end

-- Packs by program: …/firefox-esr/… and …/thunderbird/… have files of the same names.
local function program_of(path) return path:match('@([%a%-]+)') end

--- The English packs: program -> entries.
---@param files table<string, string>
function reader.english(files)
  local packs = {}
  for path, content in pairs(files) do packs[program_of(path)] = entries(content, locale_of(path)) end
  return packs
end

---@param input { files: table<string, string>, english: table, emit: fun(lang: string, english: string, foreign: string) }
function reader.read(input)
  for _, path in ipairs(text.sorted_keys(input.files)) do
    local locale, english = locale_of(path), input.english[program_of(path)]
    local translated = english and entries(input.files[path], locale) or {}
    for _, id in ipairs(text.sorted_keys(translated)) do
      if english[id] then input.emit(languages.of_locale(locale), english[id], translated[id]) end
    end
  end
end

return reader
