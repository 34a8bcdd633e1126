--- KDE's handbooks: DocBook under usr/share/doc/HTML/<locale>/, English in en. Translations add credits, so pages are aligned
-- up to the first difference.
local languages = require 'lumoe.data.languages'
local skeleton = require 'lumoe.data.readers.skeleton'
local text = require 'lumoe.data.text'

local reader = {}

local blocks = skeleton.set [[
  p title desc para td th cmd term subtitle simpara entry item list steps section note info listitem sect1 sect2 sect3 sect4 page
  media figure screen code tr chapter variablelist varlistentry itemizedlist orderedlist procedure question answer qandaentry
  refsect1 refname refpurpose ]]
local dropped = { 'bookinfo', 'articleinfo', 'authorgroup', 'legalnotice', 'screen', 'programlisting', 'refentryinfo' }

local function parse_path(path) return path:match('^usr/share/doc/HTML/([^/]+)/(.+%.docbook)$') end

---@param path string
---@param langs table<string, boolean>
function reader.wants(path, langs)
  local locale = parse_path(path)
  return locale ~= nil and (locale == 'en' or langs[languages.of_locale(locale)] == true)
end

-- Entities that stand for names (&kde; &konqueror;) read as those names.
local xml = skeleton.set 'lt gt amp quot apos nbsp'
local function parse(page)
  page = page:gsub('&([%a][%w%-%._]*);', function(name) return not xml[name] and name:gsub('%-', ' ') or nil end)
  local names, bodies = skeleton.blocks(page, blocks, dropped)
  return { names = names, bodies = bodies }
end

---@param input { files: table<string, string>, emit: fun(lang: string, english: string, foreign: string) }
function reader.read(input)
  local english = {}
  for _, path in ipairs(text.sorted_keys(input.files)) do
    local locale, page = parse_path(path)
    if locale ~= 'en' then
      local original = input.files['usr/share/doc/HTML/en/' .. page]
      if original then
        english[page] = english[page] or parse(original)
        local lang = languages.of_locale(locale)
        skeleton.align(english[page], parse(input.files[path]), { cover = 0.8, margin = 2 }, function(e, f) input.emit(lang, e, f) end)
      end
    end
  end
end

return reader
