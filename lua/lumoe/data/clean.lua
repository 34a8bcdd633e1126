--- Which aligned pairs are worth learning from, sentence by sentence.
-- A pair is rejected with a reason: markup (placeholders, code, addresses), short, long, letters (too few), same
-- (untranslated, or over half of its words English), ratio (of lengths in characters), script (not the language's own).
-- The thresholds were measured on Debian's texts.
local languages = require 'lumoe.data.languages'
local text = require 'lumoe.data.text'

local clean = {}

-- What no sentence has: format directives, braces, code, options, addresses, paths, section numbers of man pages.
local markup = {
  '%%[%-%d%.]*[%a%d%%]', '[{}<>|\\~=@]', '%$', '%-%-', '://', 'www%.', '%w/%w', '%(%d?%)', '__', '&%w+;', '::', '%[%[', '%]%]',
}
local function has_markup(s)
  if not s:find('[%%{}<>|\\~=@$%-:./(_&%[%]]') then return false end
  for i = 1, #markup do
    if s:find(markup[i]) then return true end
  end
  return false
end

-- length of the translation / length of the English, in characters
local ratio_bounds = { zh = { 0.12, 0.8 }, zh_TW = { 0.12, 0.8 }, ja = { 0.2, 1.2 }, ko = { 0.2, 1.2 } }
local spaced_bounds = { 0.45, 2.2 }

local function count(s, pattern)
  local _, n = s:gsub(pattern, '')
  return n
end

-- Characters that are letters, and those of them in the language's script.
local function letters(s, script)
  local own = 0
  for i = 1, #script do own = own + count(s, script[i]) end
  local all = count(s, '%a')
  if s:find('[\195-\255]') then -- C2 xx, E2 xx xx, E3 80 xx and EF BC-BD xx are signs and punctuation
    all = all + count(s, '[\195-\225\228-\238\240-\244]') + count(s, '\227[\129-\255]')
  end
  return all, own
end

--- Why a pair is useless, or nil if it is good.
---@param english string  one line, squeezed
---@param foreign string  one line, squeezed
---@param lang string
---@return string? reason
function clean.reason(english, foreign, lang)
  if english == foreign then return 'same' end
  local words = count(english, '%S+')
  if words < 3 then return 'short' end
  if words > 60 or #foreign > 1500 then return 'long' end
  if has_markup(english) or has_markup(foreign) then return 'markup' end

  local blanks = count(english, ' ')
  if count(english, '[%a\195-\244]') < 0.8 * (text.utf8_length(english) - blanks) then return 'letters' end
  local all, own = letters(foreign, languages.script(lang))
  local length = text.utf8_length(foreign)
  if all < 2 or all < 0.75 * (length - count(foreign, ' ')) then
    -- vowel signs of Indic scripts are letters here; what is left over is punctuation and digits
    return 'letters'
  end
  if own < 0.6 * all then return 'script' end

  local bounds = ratio_bounds[lang] or spaced_bounds
  local ratio, slack = length / #english, #english < 25 and 1.4 or 1
  if ratio < bounds[1] / slack or ratio > bounds[2] * slack then return 'ratio' end

  local low_english, low_foreign = english:lower(), foreign:lower()
  if low_english == low_foreign then return 'same' end
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
  local marked, ends = english:gsub('([%l%d%)"][%.!?]) (["(]?%u)', '%1\1%2')
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
