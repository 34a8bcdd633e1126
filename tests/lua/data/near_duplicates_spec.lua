local near_duplicates = require 'lumoe.data.near_duplicates'

local function words_of(key)
  local set, size = {}, 0
  for word in key:gmatch('%S+') do
    if not set[word] then set[word], size = true, size + 1 end
  end
  return set, size
end

local function jaccard(a, b)
  local first, n = words_of(a)
  local second, m = words_of(b)
  local shared = 0
  for word in pairs(first) do
    if second[word] then shared = shared + 1 end
  end
  return n + m > 0 and shared / (n + m - shared) or 0
end

-- Words with Zipf's frequencies, from a fixed generator.
local function sentences(count, seed)
  local state = seed
  local function random()
    state = (state * 16807) % 2147483647
    return state / 2147483647
  end
  local list = {}
  for i = 1, count do
    local words = {}
    for w = 1, 1 + math.floor(random() * 12) do words[w] = 'w' .. math.floor(1 / (0.01 + random())) end
    list[i] = table.concat(words, ' ')
  end
  return list
end

describe('near_duplicates', function()
  it('finds what comparing with every sentence finds', function()
    local keys, queries = sentences(1500, 1), sentences(400, 2)
    local index = near_duplicates.index(keys)
    for q, query in ipairs(queries) do
      if q % 3 == 0 then query = query .. ' unseen-word' .. q end
      local best = 0
      for _, key in ipairs(keys) do best = math.max(best, jaccard(query, key)) end
      local found, position = index:nearest(query)
      assert.equal(best, found)
      if best > 0 then assert.equal(best, jaccard(query, keys[position])) else assert.is_nil(position) end
    end
  end)

  it('knows a sentence again, whatever its order and repeats', function()
    local index = near_duplicates.index { 'open the file', 'close a window' }
    local score, position = index:nearest('window a close a close')
    assert.equal(1, score)
    assert.equal(2, position)
  end)

  it('takes empty queries and an empty index', function()
    assert.equal(0, (near_duplicates.index({}):nearest('a b')))
    assert.equal(0, (near_duplicates.index({ 'a b', '' }):nearest('')))
  end)
end)
