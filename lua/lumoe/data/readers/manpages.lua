--- Manual pages: po4a keeps the roff macros, so the n-th paragraph between equal macros is the translation of the n-th English one.
-- The English pages are those of the packages at hand; pages of another version differ and are aligned up to the difference.
local languages = require 'lumoe.data.languages'
local skeleton = require 'lumoe.data.readers.skeleton'
local text = require 'lumoe.data.text'
local zlib = require 'lumoe.data.zlib'

local reader = {}

-- The locale ('' for English) and the page (man1/cp.1.gz) of a path.
local function parse_path(path)
  local page = path:match('^usr/share/man/(man%d/[^/]+%.gz)$')
  if page then return '', page end
  return path:match('^usr/share/man/([^/]+)/(man%d/[^/]+%.gz)$')
end

---@param path string
---@param langs table<string, boolean>
function reader.wants(path, langs)
  local locale = parse_path(path)
  return locale ~= nil and (locale == '' or langs[languages.of_locale(locale)] == true)
end

-- Macros that only change the font of their words; those that translators add or leave out.
local fonts = skeleton.set 'B I BR IR RB RI BI IB SM SB'
local ignored = skeleton.set 'TH ds de so ie el if nr ad hy nh na TQ'

local escapes = {
  ['\\-'] = '-', ['\\&'] = '', ['\\e'] = '\\', ['\\ '] = ' ', ['\\~'] = ' ', ['\\c'] = '', ['\\|'] = '', ['\\^'] = '', ['\\:'] = '',
}
local specials = { aq = "'", dq = '"', lq = '“', rq = '”', em = '—', en = '–', bu = '•', oq = '‘', cq = '’' }

local function plain(s)
  s = s:gsub('\\f%[[^%]]*%]', ''):gsub('\\f%(..', ''):gsub('\\f.', '')
  s = s:gsub('\\%((..)', specials):gsub('\\%[(%a+)%]', specials)
  return text.squeeze((s:gsub('\\.', escapes)))
end

-- The words of a macro's line; quoted ones may hold spaces.
local function arguments(line)
  local list, at = {}, 1
  while true do
    local first, last, word = line:find('^%s*"([^"]*)"?', at)
    if not first then first, last, word = line:find('^%s*([^%s"][^%s]*)', at) end
    if not first then return list end
    list[#list + 1] = word
    at = last + 1
  end
end

-- A page's paragraphs and macros: names[i] is 'T' with the text in bodies[i], or a macro (bodies[i] of SH and SS is the heading).
local function parse(source)
  local names, bodies, open, verbatim = {}, {}, {}, false
  local function add(name, body)
    if not ignored[name] then names[#names + 1], bodies[#bodies + 1] = name, body end
  end
  local function flush()
    if #open > 0 then add('T', plain(table.concat(open, ' '))) end
    open = {}
  end
  for line in (source .. '\n'):gmatch('([^\n]*)\n') do
    local macro, rest = line:match("^[%.']%s*(%a+)%s*(.*)$")
    if macro and fonts[macro] then
      open[#open + 1] = table.concat(arguments(rest), #macro == 1 and ' ' or '')
    elseif macro then
      flush()
      if macro == 'nf' or macro == 'EX' then verbatim = true elseif macro == 'fi' or macro == 'EE' then verbatim = false end
      add(macro, (macro == 'SH' or macro == 'SS') and plain(table.concat(arguments(rest), ' ')) or '')
    elseif line:find('^%s*$') then
      flush()
    elseif not verbatim and not line:find('^[%.\'\\]+[\\"}]') then -- nor a comment
      open[#open + 1] = line
    end
  end
  flush()
  return { names = names, bodies = bodies }
end

--- English pages: man1/cp.1.gz -> compressed content.
---@param files table<string, string>
function reader.english(files)
  local pages = {}
  for path, content in pairs(files) do
    local locale, page = parse_path(path)
    if locale == '' then pages[page] = content end
  end
  return pages
end

---@param input { files: table<string, string>, english: table, emit: fun(lang: string, english: string, foreign: string) }
function reader.read(input)
  for _, path in ipairs(text.sorted_keys(input.files)) do
    local locale, page = parse_path(path)
    local original = input.english[page] and zlib.inflate(input.english[page], 'gzip')
    local translated = locale ~= '' and original and zlib.inflate(input.files[path], 'gzip')
    if translated then
      local lang = languages.of_locale(locale)
      skeleton.align(parse(original), parse(translated), { cover = 0.5, margin = 2 }, function(e, f) input.emit(lang, e, f) end)
    end
  end
end

return reader
