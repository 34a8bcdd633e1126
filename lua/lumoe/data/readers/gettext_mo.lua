--- Catalogues of gettext (.mo): the English message is the key of its translation. Programs, and games with their stories.
-- File: magic, revision, count, offset of the originals' table, offset of the translations' table; a table entry is length and offset.
local languages = require 'lumoe.data.languages'
local text = require 'lumoe.data.text'

local reader = {}

-- The language of …/de/LC_MESSAGES/x.mo, …-de_DE.mo or …/de.mo.
local function language_of(path)
  local locale = path:match('/([%a_@]+)/LC_MESSAGES/[^/]+%.mo$') or path:match('[/%-](%l%l%l?_?%u*)%.mo$')
  return locale and languages.of_locale(locale)
end

---@param path string
---@param langs table<string, boolean>
function reader.wants(path, langs) return path:find('%.mo$') ~= nil and langs[language_of(path)] == true end

local function little(s, at)
  local a, b, c, d = s:byte(at, at + 3)
  return a + b * 256 + c * 65536 + d * 16777216
end
local function big(s, at)
  local a, b, c, d = s:byte(at, at + 3)
  return d + c * 256 + b * 65536 + a * 16777216
end

-- Calls visit(message, translation) for each message with its singular form, without its context.
local function messages(content, visit)
  if #content < 28 then return end
  local number = little(content, 1) == 0x950412de and little or big(content, 1) == 0x950412de and big
  if not number then return end
  local count, originals, translations = number(content, 9), number(content, 13), number(content, 17)
  if math.max(originals, translations) + 8 * count > #content then return end
  for i = 0, count - 1 do
    local function entry(table_at)
      local length, at = number(content, table_at + 8 * i + 1), number(content, table_at + 8 * i + 5)
      return content:sub(at + 1, at + length)
    end
    local message, translation = entry(originals), entry(translations)
    if message ~= '' and translation ~= '' then
      visit(message:gsub('^.*\4', ''):gsub('%z.*$', ''), (translation:gsub('%z.*$', '')))
    end
  end
end

-- The mark of an access key (_File, &File, ~File; "(_F)" in languages without Latin letters), where there is just one.
local function without_access_key(s)
  for _, mark in ipairs { '_', '&', '~' } do
    local _, count = s:gsub(mark .. '%f[%w\128-\255]', '')
    if count == 1 and select(2, s:gsub(mark, '')) == 1 then s = s:gsub('%s?%(' .. mark .. '%w%)', ''):gsub(mark, '') end
  end
  return s
end

-- Paragraphs and list items of a long message.
local function paragraphs(s)
  local list = {}
  s = s:gsub('\n%s*\n', '\1'):gsub('\n([%*%-] )', '\1%1')
  for part in (s .. '\1'):gmatch('([^\1]*)\1') do list[#list + 1] = text.strip_markup(without_access_key(part)) end
  return list
end

---@param input { files: table<string, string>, emit: fun(lang: string, english: string, foreign: string) }
function reader.read(input)
  for _, path in ipairs(text.sorted_keys(input.files)) do
    local lang = language_of(path)
    messages(input.files[path], function(message, translation)
      if message:find('^[%w%s_%-]*%^') then -- Battle for Wesnoth puts its context before a ^
        message, translation = message:gsub('^[^%^]*%^', ''), translation:gsub('^[%w%s_%-]*%^', '')
      end
      local ours, theirs = paragraphs(message), paragraphs(translation)
      if #ours == #theirs then
        for i = 1, #ours do input.emit(lang, ours[i], theirs[i]) end
      else
        input.emit(lang, table.concat(ours, ' '), table.concat(theirs, ' '))
      end
    end)
  end
end

return reader
