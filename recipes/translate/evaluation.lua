--- Evaluation: translate the held-out sentences, score them, write everything down.
local lumoe = require 'lumoe'
local search = require 'recipes.translate.search'
local translation_memory = require 'lumoe.data.translation_memory'
local dir = require 'pl.dir'
local path = require 'pl.path'
local log, metrics, text, viz = lumoe.log, lumoe.metrics, lumoe.text, lumoe.viz

local evaluation = {}

local NOVEL = 0.6    -- a test sentence at least this like a training sentence is no news (word-Jaccard)
local SENTENCES = 64 -- of a batch

local function read_tsv(file)
  local rows = {}
  for line in io.lines(file) do
    local english, other, _, jaccard = line:match '^([^\t]*)\t([^\t]*)\t([^\t]*)\t?([^\t]*)$'
    rows[#rows + 1] = { english = english, other = other, jaccard = tonumber(jaccard) }
  end
  return rows
end

-- [rows, len] i32 of the rows' ids, filled up with pad, and which are none.
local function padded(rows, pad)
  local longest, ids = 0, {}
  for _, row in ipairs(rows) do longest = math.max(longest, #row) end
  for i, row in ipairs(rows) do
    ids[i] = {}
    for t = 1, longest do ids[i][t] = row[t] or pad end
  end
  local src = lumoe.tensor(ids, { dtype = 'i32' })
  return src, src:ne(pad)
end

--- A function from sentences to translations.
---@param model table      Translator
---@param corpus table     with tokenizer and languages
---@param opts table       beam
function evaluation.translator(model, corpus, opts)
  local tok, number = corpus.tokenizer, {}
  for i, language in ipairs(corpus.languages) do number[language] = i - 1 end
  local function tags(like, language)
    return { language = lumoe.full(like, number[language], { dtype = 'i32' }) }
  end

  local function translate_batch(sentences, from, to)
    local rows = {}
    for i, sentence in ipairs(sentences) do
      local ids = tok:encode(sentence)
      while #ids > 2 * model.opts.max_pieces do ids[#ids] = nil end
      rows[i] = { tok:id(text.tag(to)), tok:id(text.tag(from)), unpack(ids) }
      rows[i][#rows[i] + 1] = tok.eos
    end
    local src, valid = padded(rows, tok.pad)
    local batch = { src = src, src_tags = tags(src:shape_table(), from) }
    batch.src_tags.valid = valid
    batch.start = lumoe.full({ #rows }, tok:id(text.tag(to)), { dtype = 'i32' })
    local hypotheses = search.beam(model, batch, { beam = opts.beam, eos = tok.eos,
      tags = function(n) return tags({ n, 1 }, to) end })
    for i, ids in ipairs(hypotheses) do hypotheses[i] = tok:decode(ids) end
    return hypotheses
  end

  --- Longest first, so that a batch's rows are alike. each(n) is told of every batch that is done.
  return function(sentences, from, to, each)
    local order, result = {}, {}
    for i in ipairs(sentences) do order[i] = i end
    table.sort(order, function(a, b)
      if #sentences[a] ~= #sentences[b] then return #sentences[a] > #sentences[b] end
      return a < b
    end)
    for at = 1, #order, SENTENCES do
      local some = {}
      for i = at, math.min(at + SENTENCES - 1, #order) do some[#some + 1] = sentences[order[i]] end
      local out = lumoe.no_grad(function() return lumoe.scope(translate_batch, some, from, to) end)
      for i, hypothesis in ipairs(out) do result[order[at + i - 1]] = hypothesis end
      if each then each(#some) end
    end
    return result
  end
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

local function write_lines(file, lines)
  local f = assert(io.open(file, 'w'))
  for _, line in ipairs(lines) do f:write(line, '\n') end
  f:close()
end

-- One direction: hypotheses, references and the row of scores.
local function score(translate, corpus, opts, d, bar)
  local into = d.to == 'en'
  local rows = some_of(read_tsv(corpus.file('test', d.lang)), opts.test_sentences)
  local case = { direction = d.from .. '-' .. d.to, refs = {}, novel = {}, pieces = {}, tm = {} }
  local sources = {}
  for i, row in ipairs(rows) do
    sources[i], case.refs[i] = into and row.other or row.english, into and row.english or row.other
    case.novel[i] = not row.jaccard or row.jaccard < NOVEL
    case.pieces[i] = math.max(#corpus.tokenizer:encode(row.english), #corpus.tokenizer:encode(row.other))
  end
  local memory = {}
  for i, row in ipairs(read_tsv(corpus.file('train', d.lang))) do
    memory[i] = into and { row.other, row.english } or { row.english, row.other }
  end
  memory = translation_memory.new(memory, d.from)
  for i, source in ipairs(sources) do case.tm[i] = memory:translate(source) end
  case.hyps = translate(sources, d.from, d.to, function(n) bar:update(n) end)
  return metrics.evaluate(case), case, sources
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

--- Evaluates every direction. Writes test/, scores.json and report.html under `out`, prints the table.
---@param about table  name -> value for the report's head
function evaluation.run(model, corpus, opts, out, about)
  model:eval()
  for _, moe in ipairs(model:moe_layers()) do moe.layer:reset_stats() end
  local lead = lumoe.dist.rank() == 0
  local list, total = directions(opts), 0
  for _, d in ipairs(list) do
    total = total + #some_of(read_tsv(corpus.file('test', d.lang)), opts.test_sentences)
  end
  local translate = evaluation.translator(model, corpus, opts)
  local bar = log.progress { desc = 'evaluate', total = total, unit = 'sentences', quiet = not lead }
  local rows, samples = {}, {}
  if lead then dir.makepath(path.join(out, 'test')) end
  for _, d in ipairs(list) do
    local row, case, sources = score(translate, corpus, opts, d, bar)
    rows[#rows + 1] = row
    if lead then
      write_lines(path.join(out, 'test', row.direction .. '.hyp'), case.hyps)
      write_lines(path.join(out, 'test', row.direction .. '.ref'), case.refs)
    end
    local shown = math.min(math.ceil(10 / #list), #sources)
    for i = 1, shown do
      local at = math.floor(#sources * (2 * i - 1) / (2 * shown)) + 1
      if sources[at] and #samples < 10 then
        samples[#samples + 1] = { direction = row.direction, source = sources[at], hypothesis = case.hyps[at],
          reference = case.refs[at] }
      end
    end
  end
  bar:close()
  local maps = heatmaps(model, corpus)
  if not lead then return rows end

  io.write('\n', metrics.table(rows), '\n')
  for _, map in ipairs(maps) do io.write(viz.heatmap(map), '\n') end
  for _, s in ipairs(samples) do
    io.write(('%s  %s\n   → %s\n   = %s\n'):format(s.direction, s.source, s.hypothesis, s.reference))
  end
  metrics.write_scores(path.join(out, 'scores.json'), rows)
  local curves = path.join(out, 'metrics.jsonl')
  viz.report { out = path.join(out, 'report.html'), title = 'Translation', config = about, scores = rows,
    heatmaps = maps, samples = samples, curves = path.exists(curves) and viz.training_curves(log.read_jsonl(curves)) or nil }
  io.write(('\nreport: %s\n'):format(path.join(out, 'report.html')))
  return rows
end

return evaluation
