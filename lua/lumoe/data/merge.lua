--- Second half of preparation: one file for each language and split, and how near each test sentence is to training.
--
-- Sources come in order of preference. Of package texts one translation stays for each English key; of the user's files
-- every pair that is not an exact repeat. The split is by the key, unless the user gave the split's file: then that
-- file is the split, as it is, and its English sentences are kept out of the rest, in every language.
local lfs = require 'lfs'
local extract = require 'lumoe.data.extract'
local near_duplicates = require 'lumoe.data.near_duplicates'
local shell = require 'lumoe.data.shell'
local split = require 'lumoe.data.split'

local merge = {}

merge.SPLITS = { 'train', 'valid', 'test' }

-- Iterates over the lines of a task's pairs in a language; over nothing where it has none.
local function pairs_of(options, task, lang)
  local path = ('%s/%s.tsv'):format(extract.dir(options, task), lang)
  if not lfs.attributes(path) then return function() end end
  return io.lines(path)
end

local function key_of(line) return split.key(line:match('^[^\t]*')) end

---@class lumoe.data.Held
---@field keys table<string, boolean>    keys of sentences in the user's test and valid files, of any language
---@field splits table<string, boolean>  the splits that the user gave files for

--- What the user's own test and valid files keep out of training.
---@param options { dir: string, langs: string[] }
---@param tasks lumoe.data.Task[]
---@return lumoe.data.Held
function merge.held(options, tasks)
  local held = { keys = {}, splits = {} }
  for _, task in ipairs(tasks) do
    if task.split then
      held.splits[task.split] = true
      for _, lang in ipairs(options.langs) do
        for line in pairs_of(options, task, lang) do held.keys[key_of(line)] = true end
      end
    end
  end
  return held
end

--- Merges one language into work/LANG.{train,valid,test}.tsv, and its training keys into work/LANG.keys.
---@param options { dir: string }
---@param tasks lumoe.data.Task[]  sorted by preference
---@param lang string
---@param held lumoe.data.Held
---@return table<string, table<string, integer>> counts  source -> train, valid, test, duplicates, held_out
function merge.language(options, tasks, lang, held)
  local base = ('%s/work/%s'):format(options.dir, lang)
  local seen, counts, outputs = {}, {}, {}
  for _, name in ipairs(merge.SPLITS) do outputs[name] = assert(io.open(('%s.%s.tsv'):format(base, name), 'wb')) end
  local keys = assert(io.open(base .. '.keys', 'wb'))

  for _, task in ipairs(tasks) do
    local count = counts[task.source] or { train = 0, valid = 0, test = 0, duplicates = 0, held_out = 0 }
    local function write(part, line)
      count[part] = count[part] + 1
      assert(outputs[part]:write(line, '\t', task.source, '\n'))
    end
    for line in pairs_of(options, task, lang) do
      counts[task.source] = count
      local key = key_of(line)
      local same = task.own and line or key
      if task.split then
        write(task.split, line)
      elseif held.keys[key] then
        count.held_out = count.held_out + 1
      elseif seen[same] then
        count.duplicates = count.duplicates + 1
      else
        seen[same] = true
        local part = split.of(key)
        if held.splits[part] then part = 'train' end
        write(part, line)
        if part == 'train' then assert(keys:write(key, '\n')) end
      end
    end
  end
  for _, output in pairs(outputs) do assert(output:close()) end
  assert(keys:close())
  return counts
end

--- An index of the distinct training keys of all languages.
---@param options { dir: string, langs: string[] }
---@return lumoe.data.Index
function merge.index(options)
  local keys, seen = {}, {}
  for _, lang in ipairs(options.langs) do
    for key in io.lines(('%s/work/%s.keys'):format(options.dir, lang)) do
      if not seen[key] then
        seen[key] = true
        keys[#keys + 1] = key
      end
    end
  end
  return near_duplicates.index(keys)
end

--- Appends to each test line of a language the Jaccard of its nearest training sentence: work/LANG.test.tsv ->
-- .marked.tsv
---@param options { dir: string }
---@param index lumoe.data.Index
---@param lang string
---@return { total: integer, novel: integer }
function merge.mark(options, index, lang)
  local base, nearest, out = ('%s/work/%s'):format(options.dir, lang), {}, {}
  local total, novel = 0, 0
  for line in io.lines(base .. '.test.tsv') do
    local key = key_of(line)
    nearest[key] = nearest[key] or index:nearest(key)
    total = total + 1
    if nearest[key] < near_duplicates.THRESHOLD then novel = novel + 1 end
    -- cut to two decimals, not rounded: what reads 0.60 is at least 0.6, and what reads 0.59 is below
    out[#out + 1] = ('%s\t%.2f\n'):format(line, math.floor(nearest[key] * 100 + 1e-9) / 100)
  end
  shell.write(base .. '.marked.tsv', table.concat(out))
  return { total = total, novel = novel }
end

return merge
