--- Which aligned pairs are worth learning from, sentence by sentence.
-- A pair is rejected with a reason: markup (placeholders, code, addresses), utf8, short, long, letters (too few), same
-- (untranslated, or over half of its words English), ratio (of lengths in characters), script (not the language's own).
-- The thresholds were measured on Debian's texts.
local ffi = require 'ffi'
local languages = require 'lumoe.data.languages'
local text = require 'lumoe.data.text'

local clean = {}

-- What no sentence has: format directives, braces, code, options, addresses, paths, section numbers of man pages.
local literal = { '--', 'www.', '::' }
local patterns = {
  '[{}<>|\\~=@$]', '%%[%-%d%.]*[%a%d%%]', '://', '%w/%w', '%(%d?%)', '__', '&%w+;', '%[%[', '%]%]',
}
local suspicious = ffi.new 'uint8_t[256]' -- without one of these bytes none of the patterns matches
for byte in ('%{}<>|\\~=@$/(_&[]'):gmatch('.') do suspicious[byte:byte()] = 1 end

local function has_markup(s, suspect)
  for i = 1, #literal do
    if s:find(literal[i], 1, true) then return true end
  end
  for i = 1, suspect and #patterns or 0 do
    if s:find(patterns[i]) then return true end
  end
  return false
end

-- length of the translation / length of the English, in characters
local ratio_bounds = { zh = { 0.12, 0.8 }, zh_TW = { 0.12, 0.8 }, ja = { 0.2, 1.2 }, ko = { 0.2, 1.2 } }
local spaced_bounds = { 0.45, 2.2 }

local none = {}
local byte_pointer = ffi.typeof('const uint8_t *')

-- A letter here is an ASCII letter, or any later character that is in none of the blocks of signs and punctuation.
-- (Vowel signs of Indic scripts so are letters.)
local function is_letter(code)
  if code < 0x80 then return (code >= 0x41 and code <= 0x5A) or (code >= 0x61 and code <= 0x7A) end
  return code >= 0xC0 and (code < 0x2000 or code > 0x303F) and (code < 0xF000 or code > 0xFFFF or code < 0xFF00 and code > 0xFB00)
end

-- Counts of a valid UTF-8 string: characters, spaces, letters, letters within the ranges of a script; and whether there is
-- a byte of markup. One pass over the bytes.
local function measure(s, ranges)
  local bytes, size, at = ffi.cast(byte_pointer, s), #s, 0
  local characters, spaces, letters, own, suspect = 0, 0, 0, 0, 0
  while at < size do
    local code = bytes[at]
    if code < 0x80 then
      suspect, at = suspect + suspicious[code], at + 1
    elseif code < 0xE0 then
      code, at = (code - 0xC0) * 64 + bytes[at + 1] - 0x80, at + 2
    elseif code < 0xF0 then
      code, at = (code - 0xE0) * 4096 + (bytes[at + 1] - 0x80) * 64 + bytes[at + 2] - 0x80, at + 3
    else
      code = (code - 0xF0) * 262144 + (bytes[at + 1] - 0x80) * 4096 + (bytes[at + 2] - 0x80) * 64 + bytes[at + 3] - 0x80
      at = at + 4
    end
    characters = characters + 1
    if code == 0x20 then
      spaces = spaces + 1
    elseif is_letter(code) then
      letters = letters + 1
      for i = 1, #ranges, 2 do
        if code >= ranges[i] and code <= ranges[i + 1] then own = own + 1 end
      end
    end
  end
  return characters, spaces, letters, own, suspect > 0
end

--- Why a pair is useless, or nil if it is good.
---@param english string  one line, squeezed
---@param foreign string  one line, squeezed
---@param lang string
---@return string? reason
function clean.reason(english, foreign, lang)
  if english == foreign then return 'same' end
  if not english:find(' .* ') then return 'short' end
  if text.invalid_utf8(english) or text.invalid_utf8(foreign) then return 'utf8' end
  if #foreign > 1500 then return 'long' end
  local characters, spaces, letters, _, suspect = measure(english, none)
  if spaces > 59 then return 'long' end
  if has_markup(english, suspect) then return 'markup' end
  if letters < 0.8 * (characters - spaces) then return 'letters' end

  local length, foreign_spaces, foreign_letters, own, foreign_suspect = measure(foreign, languages.script(lang))
  if has_markup(foreign, foreign_suspect) then return 'markup' end
  if foreign_letters < 2 or foreign_letters < 0.75 * (length - foreign_spaces) then return 'letters' end
  if own < 0.6 * foreign_letters then return 'script' end

  local bounds = ratio_bounds[lang] or spaced_bounds
  local ratio, slack = length / characters, characters < 25 and 1.4 or 1
  if ratio < bounds[1] / slack or ratio > bounds[2] * slack then return 'ratio' end

  local low_english, low_foreign = english:lower(), foreign:lower()
  if low_english == low_foreign then return 'same' end
  if not languages.is_latin(lang) then return nil end -- the script has already told English apart
  local known, total, shared = {}, 0, 0
  for word in low_english:gmatch('%a+') do known[word] = true end
  for word in low_foreign:gmatch('[%a\128-\255]+') do
    total = total + 1
    if known[word] then shared = shared + 1 end
  end
  if total == 0 or shared > 0.5 * total then return 'same' end
end

-- Ends of sentences where no space need follow.
local full_stops = { ja = '。', zh = '。', zh_TW = '。', km = '។', hi = '।', mr = '।', bn = '।', pa = '।' }

local function cut(s)
  local list = {}
  for part in (s .. '\1'):gmatch('([^\1]*)\1') do list[#list + 1] = part end
  return list
end

local quotes = { ['"'] = { '^"(.+)"$' }, ['“'] = { '^“(.+)”$' }, ['„'] = { '^„(.+)“$', '^„(.+)”$' }, ['«'] = { '^«(.+)»$' } }

local function has_quote(s) return s:find('["]') or s:find('\194[\171\187]') or s:find('\226\128[\156-\158]') end

-- List marks at the head, and quotation marks around the whole.
local function bare(s)
  if s:find('^[%-%*%d%l\194\226]') then
    s = s:gsub('^[%-%*]+ ', ''):gsub('^%d+[%.%)] ', ''):gsub('^%l%) ', '')
    s = s:gsub('^• ?', ''):gsub('^· ?', ''):gsub('^– ', ''):gsub('^— ', '')
  end
  local close = quotes[s:sub(1, 1)] or quotes[s:sub(1, 2)] or quotes[s:sub(1, 3)]
  for i = 1, close and #close or 0 do
    local inner = s:match(close[i])
    if inner and not has_quote(inner) then return text.squeeze(inner) end
  end
  return s
end

--- Cuts an aligned paragraph into aligned sentences where both sides have as many, and hands on the good ones.
---@param english string
---@param foreign string
---@param lang string
---@param keep fun(english: string, foreign: string)
---@param reject fun(reason: string)
function clean.sentences(english, foreign, lang, keep, reject)
  english, foreign = text.squeeze(english), text.squeeze(foreign)
  if english == '' or foreign == '' or english == foreign then return reject('same') end

  local heads, tails = { english }, { foreign }
  local marked, ends = english, 0
  if english:find('[%.!?] ') then marked, ends = english:gsub('([%l%d%)"][%.!?]) (["(]?%u)', '%1\1%2') end
  if ends > 0 then
    local stop = full_stops[lang]
    heads = cut(marked)
    marked = stop and foreign:gsub('(' .. stop .. ')%s*', '%1\1') or foreign:gsub('([^%s%.][^%s%.][%.!?؟]) ', '%1\1')
    tails = cut((marked:gsub('\1$', '')))
    if #heads ~= #tails then heads, tails = { english }, { foreign } end
  end
  for i = 1, #heads do
    local e, f = bare(text.squeeze(heads[i])), bare(text.squeeze(tails[i]))
    local reason = clean.reason(e, f, lang)
    if reason then reject(reason) else keep(e, f) end
  end
end

return clean
