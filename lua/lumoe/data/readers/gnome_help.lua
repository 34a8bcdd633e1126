--- GNOME's and MATE's user help: Mallard pages and DocBook under usr/share/help/<locale>/, English in C.
local languages = require 'lumoe.data.languages'
local skeleton = require 'lumoe.data.readers.skeleton'
local text = require 'lumoe.data.text'

local reader = {}

local blocks = skeleton.set [[
  p title desc para td th cmd term subtitle simpara entry item list steps section note info listitem sect1 sect2 sect3 page media figure
  screen code tr ]]
local dropped = {
  'mal:credit', 'credit', 'legalnotice', 'authorgroup', 'revhistory', 'bookinfo', 'articleinfo', 'revision', 'code',
  'screen', 'programlisting', 'comment',
}

local function parse_path(path)
  local locale, page = path:match('^usr/share/help/([^/]+)/(.+)$')
  if page and (page:find('%.page$') or page:find('%.docbook$') or page:find('%.xml$')) then return locale, page end
end

---@param path string
---@param langs table<string, boolean>
function reader.wants(path, langs)
  local locale = parse_path(path)
  return locale ~= nil and (locale == 'C' or langs[languages.of_locale(locale)] == true)
end

local function parse(page)
  local names, bodies = skeleton.blocks(page, blocks, dropped)
  return { names = names, bodies = bodies }
end

---@param input { files: table<string, string>, emit: fun(lang: string, english: string, foreign: string) }
function reader.read(input)
  local english = {}
  for _, path in ipairs(text.sorted_keys(input.files)) do -- C sorts before every locale
    local locale, page = parse_path(path)
    if locale == 'C' then
      english[page] = parse(input.files[path])
    elseif english[page] then
      local lang = languages.of_locale(locale)
      local foreign = parse(input.files[path])
      skeleton.align(english[page], foreign, { cover = 1, margin = 0 }, function(e, f) input.emit(lang, e, f) end)
    end
  end
end

return reader
