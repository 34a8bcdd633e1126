--- Train, valid or test, decided by the English sentence alone.
-- The key of a sentence is its lower-case words with digits as 0; a hash of the key, modulo 1000, picks the split:
-- below 10 test, below 15 valid, else train. An English sentence is so in the same split in every language and
-- direction, and small variants (case, numbers, punctuation) go with it.
local split = {}

--- Lower-case, every run of digits one 0, every run of other non-letters one space. Bytes of non-ASCII letters stay.
---@param english string
---@return string
function split.key(english)
  local key = english
  if key:find('[\194\226]') then key = key:gsub('\226\128[\128-\191]', ' '):gsub('\194[\160-\191]', ' ') end
  return (key:lower():gsub('%d+', '0'):gsub('[%p%s%c]+', ' '):gsub('^ ', ''):gsub(' $', ''))
end

--- A 32-bit polynomial hash, exact in doubles: h * 131 + byte stays below 2^40.
---@param s string
---@return integer
function split.hash(s)
  local h = 7
  for i = 1, #s do h = (h * 131 + s:byte(i)) % 4294967291 end
  return h
end

---@param key string  from split.key
---@return 'train'|'valid'|'test'
function split.of(key)
  local slot = split.hash(key) % 1000
  return slot < 10 and 'test' or slot < 15 and 'valid' or 'train'
end

return split
