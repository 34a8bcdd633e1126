--- The baseline that a model has to beat: the nearest training sentence's translation, word for word as it stands
-- there. Near is by Jaccard over lower-case words (characters, where words are not spaced), on the side that is
-- translated from.
local languages = require 'lumoe.data.languages'
local near_duplicates = require 'lumoe.data.near_duplicates'
local split = require 'lumoe.data.split'

local translation_memory = {}

-- Lower case beyond ASCII, for the alphabets of one lead byte or two: Latin-1, Greek, Cyrillic.
local lower = {}
for code = 0xC0, 0xDE do
  if code ~= 0xD7 then lower['\195' .. string.char(code - 0x40)] = '\195' .. string.char(code - 0x20) end
end
for i = 0, 15 do
  lower['\208' .. string.char(0x80 + i)] = '\209' .. string.char(0x90 + i) -- Ѐ-Џ
  lower['\208' .. string.char(0x90 + i)] = '\208' .. string.char(0xB0 + i) -- А-П
  lower['\208' .. string.char(0xA0 + i)] = '\209' .. string.char(0x80 + i) -- Р-Я
  if i > 0 then lower['\206' .. string.char(0x90 + i)] = '\206' .. string.char(0xB0 + i) end -- Α-Ο
  if i < 10 then lower['\206' .. string.char(0xA0 + i)] = '\207' .. string.char(0x80 + i) end -- Π-Ω
end

--- The words of a sentence of a language with spaces between them, as near_duplicates wants them.
---@param sentence string
---@param lang string
---@return string
function translation_memory.key(sentence, lang)
  local key = split.key(sentence:find('[\195\206\208]') and sentence:gsub('[\195\206\208][\128-\191]', lower) or sentence)
  if languages.is_unspaced(lang) then key = key:gsub('[\194-\244][\128-\191]*', ' %0 '):gsub('  +', ' ') end
  return key
end

---@class lumoe.data.TranslationMemory
local Memory = {}
Memory.__index = Memory

--- Remembers pairs. Of two pairs with one source key the first stays.
---@param pairs_of { [1]: string, [2]: string }[]  source and target sentence
---@param lang string                               the source's language
---@return lumoe.data.TranslationMemory
function translation_memory.new(pairs_of, lang)
  local keys, targets, seen = {}, {}, {}
  for _, pair in ipairs(pairs_of) do
    local key = translation_memory.key(pair[1], lang)
    if not seen[key] then
      seen[key] = true
      keys[#keys + 1], targets[#targets + 1] = key, pair[2]
    end
  end
  return setmetatable({ index = near_duplicates.index(keys), targets = targets, lang = lang }, Memory)
end

--- The translation of the nearest source sentence; the sentence itself where none shares a word with it.
---@param source string
---@return string hypothesis
---@return number jaccard
function Memory:translate(source)
  local jaccard, position = self.index:nearest(translation_memory.key(source, self.lang))
  return position and self.targets[position] or source, jaccard
end

local function rows(path)
  local list = {}
  for line in assert(io.lines(path)) do
    local english, foreign, rest = line:match('^([^\t]*)\t([^\t]*)\t(.*)$')
    list[#list + 1] = { english, foreign, rest }
  end
  return list
end

--- The memory's hypotheses for a prepared test set, in the order of its lines.
---@param dir string        a directory that prepare.run filled
---@param lang string
---@param direction 'into'|'from'  into English or from it
---@return string[] hypotheses
---@return string[] references
---@return boolean[] novel   whether line i has no near-duplicate in training
function translation_memory.hypotheses(dir, lang, direction)
  if direction ~= 'into' and direction ~= 'from' then
    error(("translation memory: direction %q is neither 'into' nor 'from' English"):format(tostring(direction)), 2)
  end
  local from, to = direction == 'into' and 2 or 1, direction == 'into' and 1 or 2
  local training = rows(('%s/train.%s.tsv'):format(dir, lang))
  for i, row in ipairs(training) do training[i] = { row[from], row[to] } end
  local memory = translation_memory.new(training, direction == 'into' and lang or 'en')
  local hypotheses, references, novel = {}, {}, {}
  for i, row in ipairs(rows(('%s/test.%s.tsv'):format(dir, lang))) do
    hypotheses[i], references[i] = (memory:translate(row[from])), row[to]
    novel[i] = tonumber(row[3]:match('\t([%d%.]+)$')) < near_duplicates.THRESHOLD
  end
  return hypotheses, references, novel
end

return translation_memory
