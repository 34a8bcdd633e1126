--- LibreOffice's help: HTML pages whose paragraphs and headings carry the same id in every language.
-- <p id="par_id3153527" class="paragraph">…</p>; ids begin with par_, hd_ or tit. Languages list all ids, translated or
-- not.
local languages = require 'lumoe.data.languages'
local text = require 'lumoe.data.text'

local reader = {}

local function parse_path(path)
  return path:match('^usr/share/libreoffice/help/([^/]+)/text/(.*%.html)$')
end

---@param path string
---@param langs table<string, boolean>
function reader.wants(path, langs)
  local locale = parse_path(path)
  if not locale or locale:find('valencia') then return false end
  return locale == 'en-US' or langs[languages.of_locale(locale)] == true
end

-- Calls visit(id, body) for each identified paragraph or heading of a page.
local function paragraphs(page, visit)
  for _, id, body in page:gmatch('<([ph]%d?)%s[^>]-id="([^"]*)"[^>]*>(.-)</%1>') do
    if id:find('^par_') or id:find('^hd_') or id:find('^tit') then visit(id, body) end
  end
end

--- The English pages: page -> id -> body, still marked up.
---@param files table<string, string>
function reader.english(files)
  local pages = {}
  for path, content in pairs(files) do
    local _, page = parse_path(path)
    local bodies = {}
    paragraphs(content, function(id, body) bodies[id] = bodies[id] or body end)
    pages[page] = bodies
  end
  return pages
end

---@param input { files: table<string, string>, english: table, emit: fun(lang: string, english: string, foreign: string) }
function reader.read(input)
  for _, path in ipairs(text.sorted_keys(input.files)) do
    local locale, page = parse_path(path)
    local lang, english = languages.of_locale(locale), input.english[page]
    if english then
      local seen = {}
      paragraphs(input.files[path], function(id, body)
        if english[id] and not seen[id] and english[id] ~= body then
          seen[id] = true
          input.emit(lang, text.strip_markup(english[id]), text.strip_markup(body))
        end
      end)
    end
  end
end

return reader
