--- Debian's own books as HTML: handbook, installation guide, reference, FAQ, maintainers' guide, developers' reference. Each page
-- exists in every language with the same elements, or nearly.
local languages = require 'lumoe.data.languages'
local skeleton = require 'lumoe.data.readers.skeleton'
local text = require 'lumoe.data.text'

local reader = {}

local blocks = skeleton.set 'p h1 h2 h3 h4 h5 h6 li td th dt dd div ul ol dl table tr pre title caption'
local dropped = { 'script', 'style', 'pre', 'head', 'nav' }

-- The book, locale and page of a path; English pages of the developers' reference stand beside the other languages' directories.
local function parse_path(path)
  local locale, page = path:match('^usr/share/doc/debian%-handbook/html/([^/]+)/([^/]+%.html)$')
  if locale then return 'handbook', locale, page end
  locale, page = path:match('^usr/share/doc/installation%-guide%-[^/]+/([^/]+)/([^/]+%.html)$')
  if locale then return 'installation', locale, page end
  page, locale = path:match('^usr/share/debian%-reference/([^/]+)%.([^/%.]+)%.html$')
  if locale then return 'reference', locale, page end
  page, locale = path:match('^usr/share/doc/debian/FAQ/(.+)%.([^/%.]+)%.html$')
  if locale then return 'faq', locale, page:match('[^/]+$') end
  page, locale = path:match('^usr/share/doc/maint%-guide[^/]*/html/([^/]+)%.([^/%.]+)%.html$')
  if locale then return 'maintainers', locale, page end
  locale, page = path:match('^usr/share/developers%-reference/([^/]+)/([^/]+%.html)$')
  if locale then return 'developers', locale, page end
  page = path:match('^usr/share/developers%-reference/([^/]+%.html)$')
  if page then return 'developers', 'en', page end
end

---@param path string
---@param langs table<string, boolean>
function reader.wants(path, langs)
  local _, locale = parse_path(path)
  local lang = locale and languages.of_locale(locale)
  return lang ~= nil and (lang == 'en' or langs[lang] == true)
end

local function parse(page)
  local names, bodies = skeleton.blocks(page, blocks, dropped)
  return { names = names, bodies = bodies }
end

--- English pages: book/page -> content. Books whose languages share one package bring theirs along.
---@param files table<string, string>
function reader.english(files)
  local pages = {}
  for path, content in pairs(files) do
    local book, locale, page = parse_path(path)
    if languages.of_locale(locale) == 'en' then pages[book .. '/' .. page] = content end
  end
  return pages
end

---@param input { files: table<string, string>, english: table, emit: fun(lang: string, english: string, foreign: string) }
function reader.read(input)
  local own, parsed = reader.english(input.files), {}
  for _, path in ipairs(text.sorted_keys(input.files)) do
    local book, locale, page = parse_path(path)
    local lang, name = languages.of_locale(locale), book .. '/' .. page
    local original = own[name] or input.english[name]
    if lang ~= 'en' and original then
      parsed[name] = parsed[name] or parse(original)
      local foreign = parse(input.files[path])
      skeleton.align(parsed[name], foreign, { cover = 0.6, margin = 4 }, function(e, f) input.emit(lang, e, f) end)
    end
  end
end

return reader
