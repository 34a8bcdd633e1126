--- How a sentence becomes the units that BLEU and chrF count, exactly as sacrebleu does it.
-- Python splits at every Unicode space, so these are turned into plain spaces first; after that each
-- pattern works on bytes, because what it looks for is ASCII and no UTF-8 sequence contains ASCII.
local tokenize = {}

local CHARACTER = '[^\128-\191][\128-\191]*' -- one UTF-8 sequence, or one byte of broken text
local WORD = '[^%s\28-\31]+' -- Python's str.split() also splits at \x1c .. \x1f

local SPACES = { -- the spaces of str.split() beyond ASCII
  ['\194\133'] = ' ', ['\194\160'] = ' ', ['\225\154\128'] = ' ', ['\226\128\168'] = ' ',
  ['\226\128\169'] = ' ',
  ['\226\128\175'] = ' ', ['\226\129\159'] = ' ', ['\227\128\128'] = ' ',
}
for last = 128, 138 do SPACES['\226\128' .. string.char(last)] = ' ' end -- U+2000 .. U+200A

local function plain_spaces(line)
  if not line:find '[\194\225-\227]' then return line end
  return (line:gsub('[\194\225-\227][\128-\191]+', SPACES))
end

-- In this order: `&amp;lt;` is `<`.
local ENTITIES = { { '&quot;', '"' }, { '&amp;', '&' }, { '&lt;', '<' }, { '&gt;', '>' } }

--- Words of WMT's mteval-v13a: punctuation apart, except inside numbers.
---@param line string
---@return string[]
tokenize['13a'] = function(line)
  line = plain_spaces(line):match '^(.*[^%s\28-\31])' or ''
  line = line:gsub('<skipped>', ''):gsub('%-\n', ''):gsub('\n', ' ')
  if line:find('&', 1, true) then
    for _, entity in ipairs(ENTITIES) do line = line:gsub(entity[1], entity[2]) end
  end
  line = (' ' .. line .. ' ')
    :gsub('[{-~[-` -&(-+:-@/]', ' %0 ') -- ASCII punctuation but for ' , - .
    :gsub('([^0-9])([.,])', '%1 %2 ') -- period and comma, unless a digit precedes
    :gsub('([.,])([^0-9])', ' %1 %2') -- … or follows
    :gsub('([0-9])%-', '%1 - ') -- a dash after a digit
  local words = {}
  for word in line:gmatch(WORD) do words[#words + 1] = word end
  return words
end

--- Every character is a token: for scripts without spaces between words.
---@param line string
---@return string[]
function tokenize.char(line)
  local characters, n = {}, 0
  for character in plain_spaces(line):gmatch(CHARACTER) do
    if character:find(WORD) then
      n = n + 1
      characters[n] = character
    end
  end
  return characters
end

local UNSPACED = { ja = 'char', zh = 'char', ko = 'char', th = 'char' }

--- The tokenizer that Lumoe scores a target language with: `char` for ja zh ko th, `13a` elsewhere.
---@param language string  a code such as `de`, `zh_TW`, `pt-BR`
---@return string
function tokenize.for_language(language) return UNSPACED[language:match '^%a+'] or '13a' end

return tokenize
