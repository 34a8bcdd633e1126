--- From sentences to translations: batches of sentences of like length, dealt to the ranks.
--
-- Which sentences make a batch depends on no number of ranks, so nor do the translations. The ranks translate
-- one batch each, together: a layer may need them all. Who has none left takes part with an empty one.
local lumoe = require 'lumoe'
local search = require 'recipes.translate.search'
local cjson = require('cjson').new()
local dist, text = lumoe.dist, lumoe.text

local translation = {}

local BATCH = 64 -- sentences

-- [rows, len] i32 of the rows' ids, filled up with pad, and which are none.
local function padded(rows, pad)
  local longest, ids = 1, {}
  for _, row in ipairs(rows) do longest = math.max(longest, #row) end
  for i, row in ipairs(rows) do
    ids[i] = {}
    for t = 1, longest do ids[i][t] = row[t] or pad end
  end
  local src = lumoe.tensor(ids, { dtype = 'i32' }):reshape(#rows, longest)
  return src, src:ne(pad)
end

-- A function from the sentences of a batch to their translations.
local function batch_translator(model, corpus, beam)
  local tok, number = corpus.tokenizer, {}
  for i, language in ipairs(corpus.languages) do number[language] = i - 1 end
  local function tags(shape, language, valid)
    return { language = lumoe.full(shape, number[language], { dtype = 'i32' }), valid = valid }
  end

  local function translate(sentences, from, to)
    local rows = {}
    for i, sentence in ipairs(sentences) do
      local ids = tok:encode(sentence)
      while #ids > 2 * model.opts.max_pieces do ids[#ids] = nil end
      rows[i] = { tok:id(text.tag(to)), tok:id(text.tag(from)), unpack(ids) }
      rows[i][#rows[i] + 1] = tok.eos
    end
    local src, valid = padded(rows, tok.pad)
    local batch = { src = src, src_tags = tags(src:shape_table(), from, valid) }
    batch.start = lumoe.full({ #rows }, tok:id(text.tag(to)), { dtype = 'i32' })
    local hypotheses = search.beam(model, batch,
      { beam = beam, eos = tok.eos, tags = function(n) return tags({ n, 1 }, to) end })
    for i, ids in ipairs(hypotheses) do hypotheses[i] = tok:decode(ids) end
    return hypotheses
  end
  return function(...) return lumoe.no_grad(lumoe.scope, translate, ...) end
end

-- Longest first, so that a batch's rows are alike: a list of { request, places in its sentences }.
local function batches_of(requests, size)
  local batches = {}
  for r, request in ipairs(requests) do
    local sentences, order = request.sentences, {}
    for i in ipairs(sentences) do order[i] = i end
    table.sort(order, function(a, b)
      if #sentences[a] ~= #sentences[b] then return #sentences[a] > #sentences[b] end
      return a < b
    end)
    for at = 1, #order, size do
      batches[#batches + 1] = { request = r, places = { unpack(order, at, math.min(at + size - 1, #order)) } }
    end
  end
  return batches
end

--- Translates several lists of sentences. All ranks call it alike, and all get every translation.
---@param model table       Translator, in evaluation
---@param corpus table      with tokenizer and languages
---@param requests table[]  { sentences, from, to } each
---@param opts { beam: integer, batch: integer?, each: fun(sentences: integer)? }  sentences of a batch (64);
--   each: told how many more are done
---@return string[][] translations  of each request, in the order of its sentences
function translation.run(model, corpus, requests, opts)
  local translate, group = batch_translator(model, corpus, opts.beam), model.mesh.data
  local batches, own = batches_of(requests, opts.batch or BATCH), {}
  for first = 0, #batches - 1, group.size do
    local batch = batches[first + group.rank + 1] or { request = 1, places = {} }
    local request, some = requests[batch.request], {}
    for i, place in ipairs(batch.places) do some[i] = request.sentences[place] end
    local hypotheses = translate(some, request.from, request.to)
    for i, place in ipairs(batch.places) do own[#own + 1] = { batch.request, place, hypotheses[i] } end
    for i = first + 1, opts.each and math.min(first + group.size, #batches) or 0 do opts.each(#batches[i].places) end
  end

  local translations = {}
  for r in ipairs(requests) do translations[r] = {} end
  for _, json in ipairs(dist.gather_texts(cjson.encode(own), group)) do
    for _, entry in ipairs(cjson.decode(json)) do translations[entry[1]][entry[2]] = entry[3] end
  end
  return translations
end

return translation
