--- From translations to the evaluation's table: one row of scores per direction.
-- A test sentence is *novel* when no training sentence is near it; a *short* one has at most 48 pieces. The
-- translation memory (the nearest training sentence's translation) is the baseline that a model has to beat.
local cjson = require('cjson').new()
local align = require 'lumoe.metrics.align'
local bleu = require 'lumoe.metrics.bleu'
local chrf = require 'lumoe.metrics.chrf'
local options = require 'lumoe.options'
local tokenize = require 'lumoe.metrics.tokenize'

local scores = {}

---@class lumoe.DirectionScores
---@field direction string        `<source>-<target>`, such as `de-en`
---@field sentences integer
---@field novel integer?          how many of them are novel; nil, here and below, where nothing says so
---@field novel_48 integer?
---@field bleu number
---@field chrf number
---@field bleu_novel number?
---@field bleu_novel_48 number?   novel and at most 48 pieces
---@field tm number?              BLEU of the translation memory, and of its two subsets
---@field tm_novel number?
---@field tm_novel_48 number?
---@field signature string        of every BLEU of the row
---@field chrf_signature string

--- The sentences of a list whose numbers are in `chosen`.
local function pick(list, chosen)
  local picked = {}
  for i, index in ipairs(chosen) do picked[i] = list[index] end
  return picked
end

local function indices(count, wanted)
  local chosen = {}
  for i = 1, count do
    if wanted(i) then chosen[#chosen + 1] = i end
  end
  return chosen
end

local EVALUATE = {
  direction = 'string', hyps = 'table', refs = 'table', novel = 'table?', pieces = 'table?', tm = 'table?',
}

--- Scores one direction: BLEU by the target language's tokenizer, chrF, and BLEU on the novel subsets.
---@param opts table  direction, hyps, refs: string[]; novel: boolean[]?, pieces: integer[]?, tm: string[]?
---  novel[i]: sentence i has no near-duplicate in training; pieces[i]: its length as the model sees it;
---  tm[i]: what the translation memory says
---@return lumoe.DirectionScores
function scores.evaluate(opts)
  options.check('evaluate', opts, EVALUATE)
  local hyps, refs, novel, pieces, tm = opts.hyps, opts.refs, opts.novel, opts.pieces, opts.tm
  for name, list in pairs { novel = novel, pieces = pieces, tm = tm } do
    if #list ~= #refs then
      options.raise('evaluate', '%s has %d entries, but there are %d references', name, #list, #refs)
    end
  end
  local target = opts.direction:match '%-([^-]+)$'
  if not target then options.raise('evaluate', "direction '%s' is not <source>-<target>", opts.direction) end

  local how = { tokenize = tokenize.for_language(target) }
  local function bleu_on(candidates, chosen)
    if candidates and #chosen > 0 then
      return bleu(pick(candidates, chosen), pick(refs, chosen), how).score
    end
  end
  local all, characters = bleu(hyps, refs, how), chrf(hyps, refs)
  local is_novel = indices(novel and #refs or 0, function(i) return novel[i] end)
  local is_short = indices(novel and pieces and #refs or 0, function(i)
    return novel[i] and pieces[i] <= 48
  end)
  return {
    direction = opts.direction, sentences = #refs, novel = novel and #is_novel,
    novel_48 = novel and pieces and #is_short,
    bleu = all.score, chrf = characters.score,
    bleu_novel = bleu_on(hyps, is_novel), bleu_novel_48 = bleu_on(hyps, is_short),
    tm = tm and bleu(tm, refs, how).score, tm_novel = bleu_on(tm, is_novel),
    tm_novel_48 = bleu_on(tm, is_short),
    signature = all.signature, chrf_signature = characters.signature,
  }
end

local COLUMNS = {
  { 'bleu', 'BLEU' }, { 'chrf', 'chrF' }, { 'bleu_novel', 'novel' }, { 'bleu_novel_48', 'novel ≤48' },
  { 'tm', 'TM' }, { 'tm_novel', 'TM novel' }, { 'tm_novel_48', 'TM novel ≤48' },
}

--- The mean of each column over the rows that have it, or nil when fewer than two rows are given.
local function mean_row(name, rows)
  if #rows < 2 then return nil end
  local mean = { direction = name, sentences = 0 }
  for _, row in ipairs(rows) do mean.sentences = mean.sentences + row.sentences end
  for _, column in ipairs(COLUMNS) do
    local sum, count = 0, 0
    for _, row in ipairs(rows) do
      local value = row[column[1]]
      if value then sum, count = sum + value, count + 1 end
    end
    mean[column[1]] = count > 0 and sum / count or nil
  end
  return mean
end

--- Means over all directions into one language, and out of one, where there are several.
---@param rows lumoe.DirectionScores[]
---@return table[] means  like rows, `direction` being `mean → en` or `mean en →`
function scores.means(rows)
  local into, from, order, means = {}, {}, {}, {}
  for _, row in ipairs(rows) do
    local source, target = row.direction:match '^(.*)%-([^-]+)$'
    for name, group in pairs { [target] = into, [source] = from } do
      group[name] = group[name] or {}
      table.insert(group[name], row)
    end
    order[#order + 1], order[#order + 2] = source, target
  end
  local seen = {}
  for _, language in ipairs(order) do
    if not seen[language] then
      seen[language] = true
      means[#means + 1] = mean_row('mean → ' .. language, into[language] or {})
      means[#means + 1] = mean_row(('mean %s →'):format(language), from[language] or {})
    end
  end
  return means
end

--- The heading and the cells of the table as text: for the terminal below, and for the report.
---@param rows lumoe.DirectionScores[]
---@return string[] heading
---@return string[][] lines
function scores.cells(rows)
  local used = {}
  for _, column in ipairs(COLUMNS) do
    for _, row in ipairs(rows) do
      if row[column[1]] then
        used[#used + 1] = column
        break
      end
    end
  end
  local heading, lines = { 'direction', 'sentences' }, {}
  for _, column in ipairs(used) do heading[#heading + 1] = column[2] end
  local function add(row)
    local line = { row.direction, ('%d'):format(row.sentences) }
    for _, column in ipairs(used) do
      line[#line + 1] = row[column[1]] and ('%.2f'):format(row[column[1]]) or '-'
    end
    lines[#lines + 1] = line
  end
  for _, row in ipairs(rows) do add(row) end
  for _, row in ipairs(scores.means(rows)) do add(row) end
  return heading, lines
end

--- The evaluation as an aligned table, with the signatures under it.
---@param rows lumoe.DirectionScores[]
---@return string  lines, each ended
function scores.table(rows)
  local heading, lines = scores.cells(rows)
  local out = align(heading, lines, #rows)
  local seen = {}
  for _, row in ipairs(rows) do
    for name, signature in pairs { BLEU = row.signature, chrF2 = row.chrf_signature } do
      local line = ('%s|%s'):format(name, signature)
      if not seen[line] then
        seen[line] = true
        seen[#seen + 1] = line
      end
    end
  end
  table.sort(seen)
  for _, line in ipairs(seen) do out[#out + 1] = line end
  return table.concat(out, '\n') .. '\n'
end

local FIELDS = {
  'bleu', 'chrf', 'bleu_novel', 'bleu_novel_48', 'tm', 'tm_novel', 'tm_novel_48', 'sentences',
  'novel', 'novel_48',
  'signature', 'chrf_signature',
}

--- Writes scores.json: `{ "de-en": { "bleu": …, "chrf": …, "bleu_novel": …, … }, … }`, a direction a
-- line, in the order of the rows; what could not be scored is null. The file is complete or absent.
---@param path string
---@param rows lumoe.DirectionScores[]
function scores.write(path, rows)
  local lines = {}
  for i, row in ipairs(rows) do
    local fields = {}
    for f, name in ipairs(FIELDS) do
      local value = row[name]
      if type(value) == 'number' then value = tonumber(('%.4f'):format(value)) end
      fields[f] = ('"%s": %s'):format(name, value and cjson.encode(value) or 'null')
    end
    lines[i] = ('  %s: {%s}'):format(cjson.encode(row.direction), table.concat(fields, ', '))
  end
  local aside = path .. '.part'
  local file = assert(io.open(aside, 'w'))
  assert(file:write('{\n', table.concat(lines, ',\n'), '\n}\n'))
  assert(file:close())
  assert(os.rename(aside, path))
end

return scores
