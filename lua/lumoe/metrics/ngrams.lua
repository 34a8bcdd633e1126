--- Clipped n-gram matches of one sentence pair, of all orders at once: what BLEU and chrF are sums of.
-- An n-gram is named by a number, given to the pair (its first n-1 symbols' name, its last symbol). So a
-- hypothesis walks along n-grams that the reference has, and stops at the first order that it has not.
local new_table = require 'table.new' -- LuaJIT's: room for as many entries from the start
local options = require 'lumoe.options'

local ngrams = {}

local SYMBOLS = 2 ^ 26 -- more symbols than any corpus has; name * SYMBOLS stays an exact integer in a double

--- Gives each distinct token a small integer from 0.
---@return fun(tokens: string[]): integer[]
function ngrams.interner()
  local id_of, count = {}, 0
  return function(tokens)
    local ids = {}
    for i = 1, #tokens do
      local id = id_of[tokens[i]]
      if not id then
        id, count = count, count + 1
        id_of[tokens[i]] = id
      end
      ids[i] = id
    end
    return ids
  end
end

--- Adds to `matches[n]` how many n-grams of `hyp` the reference also has, each at most as often as there.
---@param hyp integer[]  symbols, as an interner gave them
---@param ref integer[]
---@param max_order integer
---@param matches number[]  one number per order, added to
function ngrams.match(hyp, ref, max_order, matches)
  local name_of = new_table(0, #ref * max_order) -- (prefix, symbol) -> name
  local left, names = {}, 0 -- name -> occurrences not yet matched
  for i = 1, #ref do
    local name = 0
    for j = i, math.min(i + max_order - 1, #ref) do
      local key = name * SYMBOLS + ref[j]
      name = name_of[key]
      if not name then
        names = names + 1
        name = names
        name_of[key], left[name] = name, 0
      end
      left[name] = left[name] + 1
    end
  end
  for i = 1, #hyp do
    local name = 0
    for j = i, math.min(i + max_order - 1, #hyp) do
      name = name_of[name * SYMBOLS + hyp[j]]
      if not name then break end
      if left[name] > 0 then
        left[name] = left[name] - 1
        matches[j - i + 1] = matches[j - i + 1] + 1
      end
    end
  end
end

--- Checks what every corpus metric takes: two lists of strings of one length.
---@param who string  the metric's name, for the message
function ngrams.check_corpus(who, hyps, refs)
  for name, list in pairs { hyps = hyps or 'nil', refs = refs or 'nil' } do
    if type(list) ~= 'table' then options.raise(who, '%s must be a list of strings', name) end
    for i = 1, #list do
      if type(list[i]) ~= 'string' then
        options.raise(who, '%s[%d] is a %s, not a string', name, i, type(list[i]))
      end
    end
  end
  if #hyps ~= #refs then options.raise(who, '%d hypotheses, but %d references', #hyps, #refs) end
  if #hyps == 0 then options.raise(who, 'no sentences') end
end

return ngrams
