--- The data of the recipe: prepared text, its tokenizer, token streams, batches as tensors.
local lumoe = require 'lumoe'
local prepare = require 'lumoe.data.prepare'
local path = require 'pl.path'
local dist, data, text = lumoe.dist, lumoe.data, lumoe.text

local corpus = {}

-- Work that one rank does for all: an error there is an error everywhere, and nobody goes on before.
local function once(f)
  local message
  if dist.rank() == 0 then
    local ok, raised = xpcall(f, debug.traceback)
    message = not ok and raised or nil
  end
  dist.agree(message)
end

--- Prepares what is missing. Returns { dir, langs, tokenizer, streams = lang -> {en, lang} }.
function corpus.open(opts)
  local langs = opts.langs
  local dir = opts.data_dir or path.join('data', table.concat(langs, '-'))
  local model = path.join(dir, ('spm-%d.model'):format(opts.vocab))
  local function file(split, lang) return path.join(dir, ('%s.%s.tsv'):format(split, lang)) end

  once(function()
    if not path.exists(path.join(dir, 'manifest.json')) then
      prepare.run { langs = langs, dir = dir, from = opts.data }
    end
    if not path.exists(model) then
      local symbols, columns = { '<mask>', text.tag 'en' }, {}
      for _, lang in ipairs(langs) do
        symbols[#symbols + 1] = text.tag(lang)
        columns[#columns + 1], columns[#columns + 2] = { file('train', lang), 1 }, { file('train', lang), 2 }
      end
      io.stderr:write(('tokenizer: training %d pieces\n'):format(opts.vocab))
      text.train { model = model, vocab_size = opts.vocab, symbols = symbols, columns = columns, sample = 120000,
        temperature = opts.temperature }
    end
    local tokenizer = text.load(model)
    for _, lang in ipairs(langs) do
      tokenizer:encode_tsv(file('train', lang), corpus.stream_paths(model, 'train', lang))
    end
  end)

  local self = { dir = dir, langs = langs, file = file, tokenizer = text.load(model), streams = {} }
  self.languages = { 'en', unpack(langs) }
  for _, lang in ipairs(langs) do
    local paths = corpus.stream_paths(model, 'train', lang)
    self.streams[lang] = { data.stream.open(paths[1]), data.stream.open(paths[2]) }
  end
  return self
end

--- Streams lie beside the tokenizer that made them: column 1 is English, 2 the other language.
function corpus.stream_paths(model, split, lang)
  local stem = ('%s.%s.%s'):format(model:gsub('%.model$', ''), split, lang)
  return { stem .. '.en.tokens', stem .. '.tokens' }
end

--- The mixture: translation in the directions asked for, and denoising of both sides.
function corpus.batches(self, opts)
  local tasks = {}
  for _, lang in ipairs(self.langs) do
    local english, other = self.streams[lang][1], self.streams[lang][2]
    if opts.directions ~= 'from' then
      tasks[#tasks + 1] = { source = other, target = english, from = lang, to = 'en' }
    end
    if opts.directions ~= 'into' then
      tasks[#tasks + 1] = { source = english, target = other, from = 'en', to = lang }
    end
    if opts.denoising > 0 then
      tasks[#tasks + 1] = { source = other, from = lang, to = lang, kind = 'denoising' }
      tasks[#tasks + 1] = { source = english, from = 'en', to = 'en', kind = 'denoising' }
    end
  end
  return data.batches.new {
    tokenizer = self.tokenizer, languages = self.languages, tasks = tasks, tokens = opts.batch,
    micro_batches = opts.micro_batches, temperature = opts.temperature, denoising = opts.denoising,
    max_pieces = opts.max_pieces, seed = opts.seed, source_tags = true,
  }
end

local POSITIONS = 2 ^ 20 -- more than any sentence has: sequence · POSITIONS + position numbers the tokens of a step

-- Tags of [rows, len] tokens: which are no padding, their global numbers, their language and task.
local function tags(raw, len, lens, language)
  local rows = raw.rows
  local position = lumoe.arange(len)
  local function column(name, dtype) return lumoe.from(raw[name], { rows, 1 }, { dtype = dtype }) end
  local function every(name) return column(name, 'i32'):expand(rows, len) end
  return {
    valid = position:lt(column(lens, 'i32')),
    tokens = column('sequence', 'i64') * POSITIONS + position,
    language = every(language), task = every 'tag',
  }
end

--- What `data.batches` gives, as tensors with tags for the model.
function corpus.tensors(raw, pad)
  local function ids(name, len) return lumoe.from(raw[name], { raw.rows, len }, { dtype = 'i32' }) end
  return {
    pad = pad, rows = raw.rows,
    src = ids('src', raw.src_len), tgt_in = ids('tgt_in', raw.tgt_len), tgt_out = ids('tgt_out', raw.tgt_len),
    src_tags = tags(raw, raw.src_len, 'src_lens', 'src_language'),
    tgt_tags = tags(raw, raw.tgt_len, 'tgt_lens', 'tgt_language'),
  }
end

return corpus
