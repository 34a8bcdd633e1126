--- Exact nearest neighbours by word-Jaccard: |A and B| / |A or B| over the sets of words of two sentences.
--
-- An inverted index with prefix filtering. Words are ranked from rare to common. A query's words are looked up rarest
-- first; a sentence that shares none of the first p of n words has Jaccard at most (n - p) / n, so the search ends as
-- soon as that bound is not above the best found. Each sentence met is compared once, and only when its length allows a
-- better score. Common words are thus seldom looked up at all.
local ffi = require 'ffi'

local near_duplicates = {}

---@class lumoe.data.Index
local Index = {}
Index.__index = Index

--- At or above this a sentence counts as seen in training; below, it is novel.
near_duplicates.THRESHOLD = 0.6

-- The distinct words of a key as ids, in `out` (1-based); unknown words get new ids through `add`, or count but have no
-- id.
local function word_ids(key, ids, out, add)
  local count, unknown, seen = 0, 0, {}
  for word in key:gmatch('%S+') do
    if not seen[word] then
      seen[word] = true
      local id = ids[word] or (add and add(word))
      if id then
        count = count + 1
        out[count] = id
      else
        unknown = unknown + 1
      end
    end
  end
  return count, unknown
end

local function sort_range(array, first, last) -- insertion sort: sentences are short
  for i = first + 1, last do
    local value, j = array[i], i - 1
    while j >= first and array[j] > value do
      array[j + 1] = array[j]
      j = j - 1
    end
    array[j + 1] = value
  end
end

--- Builds an index.
---@param keys string[]  words with spaces between, as split.key gives them
---@return lumoe.data.Index
function near_duplicates.index(keys)
  local ids, words, frequency = {}, {}, {}
  local function add(word)
    local id = #words + 1
    words[id], ids[word], frequency[id] = word, id, 0
    return id
  end

  -- every sentence as a run of word ids
  local total, scratch, capacity = 0, {}, 1024
  local runs, starts = ffi.new('int32_t[?]', capacity), ffi.new('int32_t[?]', #keys + 1)
  for k = 1, #keys do
    local count = word_ids(keys[k], ids, scratch, add)
    if total + count > capacity then
      local larger = ffi.new('int32_t[?]', (total + count) * 2)
      ffi.copy(larger, runs, total * 4)
      runs, capacity = larger, (total + count) * 2
    end
    for i = 1, count do
      local id = scratch[i]
      runs[total + i - 1] = id
      frequency[id] = frequency[id] + 1
    end
    total = total + count
    starts[k] = total
  end

  -- ids become ranks, rare first; equally rare words in byte order
  local order = {}
  for id = 1, #words do order[id] = id end
  table.sort(order, function(a, b)
    if frequency[a] ~= frequency[b] then return frequency[a] < frequency[b] end
    return words[a] < words[b]
  end)
  local rank = ffi.new('int32_t[?]', #words + 1)
  local posting_starts = ffi.new('int32_t[?]', #words + 1)
  for r = 1, #order do
    rank[order[r]] = r - 1
    ids[words[order[r]]] = r - 1
    posting_starts[r] = posting_starts[r - 1] + frequency[order[r]]
  end
  for i = 0, total - 1 do runs[i] = rank[runs[i]] end

  -- postings: for each rank the sentences that have the word
  local fill, postings = ffi.new('int32_t[?]', #words + 1), ffi.new('int32_t[?]', total + 1)
  ffi.copy(fill, posting_starts, #words * 4)
  for k = 0, #keys - 1 do
    sort_range(runs, starts[k], starts[k + 1] - 1)
    for i = starts[k], starts[k + 1] - 1 do
      local r = runs[i]
      postings[fill[r]] = k
      fill[r] = fill[r] + 1
    end
  end
  return setmetatable({
    ids = ids, runs = runs, starts = starts, posting_starts = posting_starts, postings = postings, count = #keys,
    met = ffi.new('int32_t[?]', #keys + 1), query = 0, wanted = ffi.new('int32_t[?]', 4096), scratch = {},
  }, Index)
end

-- How many of wanted[0..n) and runs[first..last) are equal; both ascending.
local function overlap(wanted, n, runs, first, last)
  local shared, i, j = 0, 0, first
  while i < n and j < last do
    local a, b = wanted[i], runs[j]
    if a == b then
      shared = shared + 1
      i, j = i + 1, j + 1
    elseif a < b then
      i = i + 1
    else
      j = j + 1
    end
  end
  return shared
end

--- The nearest sentence of the index.
---@param key string
---@return number jaccard    0 when no word is shared
---@return integer? position  1-based position of the sentence in the indexed list
function Index:nearest(key)
  local wanted, runs, starts, postings, met = self.wanted, self.runs, self.starts, self.postings, self.met
  local known, unknown = word_ids(key, self.ids, self.scratch)
  if known > 4096 then known = 4096 end
  for i = 1, known do wanted[i - 1] = self.scratch[i] end
  sort_range(wanted, 0, known - 1)
  self.query = self.query + 1
  local query, size = self.query, known + unknown
  local best, best_at = 0, -1
  for p = 0, known - 1 do
    if known - p <= best * size then break end -- at most known - p words can still be shared, of at least `size`
    local r = wanted[p]
    for i = self.posting_starts[r], self.posting_starts[r + 1] - 1 do
      local k = postings[i]
      if met[k] ~= query then
        met[k] = query
        local first, last = starts[k], starts[k + 1]
        local length = last - first
        local limit = length < known - p and length or known - p -- words before p are not shared
        if limit > best * (size + length - limit) then
          local shared = overlap(wanted, known, runs, first, last)
          local jaccard = shared / (size + length - shared)
          if jaccard > best then best, best_at = jaccard, k end
        end
      end
    end
  end
  return best, best_at >= 0 and best_at + 1 or nil
end

return near_duplicates
