--- Evaluation: translate the held-out sentences, score them, write everything down.
local lumoe = require 'lumoe'
local translation = require 'recipes.translate.translation'
local translation_memory = require 'lumoe.data.translation_memory'
local cjson = require('cjson').new()
local dir = require 'pl.dir'
local path = require 'pl.path'
local dist, log, metrics, viz = lumoe.dist, lumoe.log, lumoe.metrics, lumoe.viz

local evaluation = {}

local NOVEL = 0.6 -- a test sentence at least this like a training sentence is no news (word-Jaccard)
local SAMPLES = 10

local function read_tsv(file)
  local rows = {}
  for line in io.lines(file) do
    local english, other, _, jaccard = line:match '^([^\t]*)\t([^\t]*)\t([^\t]*)\t?([^\t]*)$'
    rows[#rows + 1] = { english = english, other = other, jaccard = tonumber(jaccard) }
  end
  return rows
end

local function directions(opts)
  local list = {}
  for _, lang in ipairs(opts.langs) do
    if opts.directions ~= 'from' then list[#list + 1] = { lang = lang, from = lang, to = 'en' } end
    if opts.directions ~= 'into' then list[#list + 1] = { lang = lang, from = 'en', to = lang } end
  end
  return list
end

-- Evenly spread, so that a part of the test set is like the whole.
local function some_of(rows, n)
  if n == 0 or n >= #rows then return rows end
  local list = {}
  for i = 1, n do list[i] = rows[math.floor((i - 1) * #rows / n) + 1] end
  return list
end

-- The test sentences of a direction, as scores want them.
local function case_of(corpus, opts, d)
  local into = d.to == 'en'
  local case = { direction = d.from .. '-' .. d.to, from = d.from, to = d.to, sentences = {}, refs = {}, novel = {},
    pieces = {} }
  for i, row in ipairs(some_of(read_tsv(corpus.file('test', d.lang)), opts.test_sentences)) do
    case.sentences[i], case.refs[i] = into and row.other or row.english, into and row.english or row.other
    case.novel[i] = not row.jaccard or row.jaccard < NOVEL
    case.pieces[i] = math.max(#corpus.tokenizer:encode(row.english), #corpus.tokenizer:encode(row.other))
  end
  return case
end

-- What the translation memory answers in each direction: the ranks take turns at directions.
local function remembered(corpus, list, cases, group)
  local own = {}
  local bar = log.progress { desc = 'memory', total = #list, unit = 'directions', quiet = dist.rank() ~= 0 }
  for i = group.rank + 1, #list, group.size do
    local into, pairs_of, answers = list[i].to == 'en', {}, {}
    for r, row in ipairs(read_tsv(corpus.file('train', list[i].lang))) do
      pairs_of[r] = into and { row.other, row.english } or { row.english, row.other }
    end
    local memory = translation_memory.new(pairs_of, list[i].from)
    for s, sentence in ipairs(cases[i].sentences) do answers[s] = memory:translate(sentence) end
    own[#own + 1] = { i, answers }
    bar:update(math.min(group.size, #list - i + 1))
  end
  bar:close()
  local all = {}
  for _, json in ipairs(dist.gather_texts(cjson.encode(own), group)) do
    for _, entry in ipairs(cjson.decode(json)) do all[entry[1]] = entry[2] end
  end
  return all
end

-- SAMPLES translations at most, from all directions, evenly spread.
local function samples_of(cases)
  local samples = {}
  for _, case in ipairs(cases) do
    local n = #case.sentences
    local shown = math.min(math.ceil(SAMPLES / #cases), n)
    for i = 1, shown do
      local at = math.floor(n * (2 * i - 1) / (2 * shown)) + 1
      if case.sentences[at] and #samples < SAMPLES then
        samples[#samples + 1] = { direction = case.direction, source = case.sentences[at], hypothesis = case.hyps[at],
          reference = case.refs[at] }
      end
    end
  end
  return samples
end

-- expert × language, one map a layer, from the statistics of the evaluation itself.
local function heatmaps(model, corpus)
  local maps = {}
  for _, moe in ipairs(model:moe_layers()) do
    local by, rows, values = moe.layer:stats().by.language or {}, {}, {}
    local cols = {}
    for e = 1, model.opts.experts do cols[e] = tostring(e - 1) end
    for i, language in ipairs(corpus.languages) do
      if by[i - 1] then
        rows[#rows + 1], values[#values + 1] = language, by[i - 1].tokens_per_expert
      end
    end
    if #rows > 0 then
      maps[#maps + 1] = { title = moe.path .. ': share of each language\'s tokens by expert', rows = rows, cols = cols,
        values = values, normalize = 'rows' }
    end
  end
  return maps
end

-- The records of the training up to this step, where there are any.
local function records_of(file, step)
  local records = {}
  for _, record in ipairs(path.exists(file) and log.read_jsonl(file) or {}) do
    if not step or (tonumber(record.step) or math.huge) <= step then records[#records + 1] = record end
  end
  return records
end

local function write_texts(out, case)
  for suffix, lines in pairs { hyp = case.hyps, ref = case.refs } do
    local f = assert(io.open(path.join(out, 'test', ('%s.%s'):format(case.direction, suffix)), 'w'))
    for _, line in ipairs(lines) do f:write(line, '\n') end
    f:close()
  end
end

--- Evaluates every direction, the ranks together. Writes test/, scores.json and report.html under `out` and prints
-- the table. Returns, on rank 0, what the report shows: { rows, heatmaps, samples, records, about }; nil without a
-- test sentence. A direction that has none is left out.
---@param how { about: table, records: string, step: integer? }  name -> value for the report's head; the metrics.jsonl
--   of the training, and the last step of it that counts
function evaluation.run(model, corpus, opts, out, how)
  model:eval()
  for _, moe in ipairs(model:moe_layers()) do moe.layer:reset_stats() end
  local lead = dist.rank() == 0
  local list, cases, total = {}, {}, 0
  for _, d in ipairs(directions(opts)) do
    local case = case_of(corpus, opts, d)
    if #case.sentences > 0 then
      list[#list + 1], cases[#cases + 1] = d, case
      total = total + #case.sentences
    elseif lead then
      io.stderr:write(('evaluate: no test sentences for %s; with --data, a file test.%s.tsv gives some\n')
        :format(case.direction, d.lang))
    end
  end
  if total == 0 then return nil end
  local bar = log.progress { desc = 'evaluate', total = total, unit = 'sentences', quiet = not lead }
  local hypotheses = translation.run(model, corpus, cases, { beam = opts.beam, each = function(n) bar:update(n) end })
  bar:close()
  local memory = remembered(corpus, list, cases, model.mesh.data)
  local maps = heatmaps(model, corpus)
  if not lead then return nil end

  local rows = {}
  dir.makepath(path.join(out, 'test'))
  for i, case in ipairs(cases) do
    case.hyps = hypotheses[i]
    rows[i] = metrics.evaluate { direction = case.direction, hyps = case.hyps, refs = case.refs, novel = case.novel,
      pieces = case.pieces, tm = memory[i] }
    write_texts(out, case)
  end
  local shown = { rows = rows, heatmaps = maps, samples = samples_of(cases), about = how.about,
    records = records_of(how.records, how.step) }
  io.write('\n', metrics.table(rows), '\n')
  for _, map in ipairs(maps) do io.write(viz.heatmap(map), '\n') end
  for _, s in ipairs(shown.samples) do
    io.write(('%s  %s\n   → %s\n   = %s\n'):format(s.direction, s.source, s.hypothesis, s.reference))
  end
  metrics.write_scores(path.join(out, 'scores.json'), rows)
  viz.report { out = path.join(out, 'report.html'), title = 'Translation', config = how.about, scores = rows,
    heatmaps = maps, samples = shown.samples, curves = viz.training_curves(shown.records) }
  io.write(('\nreport: %s\n'):format(path.join(out, 'report.html')))
  return shown
end

return evaluation
