--- The data of the recipe: prepared text, its tokenizer, token streams, batches as tensors.
local lumoe = require 'lumoe'
local prepare = require 'lumoe.data.prepare'
local json = require 'lumoe.data.json'
local path = require 'pl.path'
local utils = require 'pl.utils'
local dist, data, text = lumoe.dist, lumoe.data, lumoe.text

local corpus = {}

-- Whether all that a run needs lies there already, whoever prepared it.
local function complete(manifest, langs, file)
  if not path.exists(manifest) then return false end
  for _, lang in ipairs(langs) do
    if not (path.exists(file('train', lang)) and path.exists(file('test', lang))) then return false end
  end
  return true
end

local function default_dir(opts)
  if opts.data then return path.join('data', path.basename(path.normpath(path.abspath(opts.data)))) end
  return prepare.default_dir(opts.langs)
end

-- The languages that have sentences to train on. One that was asked for must have some; one of those that are merely
-- found in opts.data is left out, and the first rank says so.
local function with_text(langs, file, asked, dir)
  local list, empty = {}, {}
  for _, lang in ipairs(langs) do
    local size = path.getsize(file('train', lang))
    table.insert(size and size > 0 and list or empty, lang)
  end
  dist.once(function()
    if #empty == 0 then return end
    local what = ('%s: no sentences of %s'):format(dir, table.concat(empty, ', '))
    if asked or #list == 0 then lumoe.refuse('%s', what) end
    io.stderr:write(what, '; left out\n')
  end)
  return list
end

--- Prepares what is missing. Without opts.langs, the languages are those found in opts.data.
-- Returns { dir, langs, tokenizer, streams = lang -> {en, lang} }.
function corpus.open(opts)
  local dir = opts.data_dir or default_dir(opts)
  local manifest = path.join(dir, 'manifest.json')
  local model = path.join(dir, ('spm-%d.model'):format(opts.vocab))
  local function file(split, lang) return path.join(dir, ('%s.%s.tsv'):format(split, lang)) end

  dist.once(function()
    if opts.data or not complete(manifest, opts.langs, file) then
      prepare.run { langs = opts.langs, dir = dir, from = opts.data }
    end
  end)
  local langs = opts.langs or json.decode(assert(utils.readfile(manifest))).langs

  langs = with_text(langs, file, opts.langs ~= nil, dir)

  dist.once(function()
    -- A tokenizer older than the data belongs to other data.
    if not path.exists(model) or path.getmtime(model) < path.getmtime(manifest) then
      local symbols, columns = { '<mask>', text.tag 'en' }, {}
      for _, lang in ipairs(langs) do
        symbols[#symbols + 1] = text.tag(lang)
        columns[#columns + 1], columns[#columns + 2] = { file('train', lang), 1 }, { file('train', lang), 2 }
      end
      io.stderr:write(('tokenizer: training %d pieces\n'):format(opts.vocab))
      local ok, message = pcall(text.train, { model = model, vocab_size = opts.vocab, symbols = symbols, columns = columns,
        sample = 120000, temperature = opts.temperature })
      if not ok then lumoe.refuse('--vocab %d: %s', opts.vocab, (message:gsub('^.*text: train: ', ''))) end
    end
    local tokenizer, said = text.load(model), os.time()
    for i, lang in ipairs(langs) do
      if os.time() - said >= 5 then
        said = os.time()
        io.stderr:write(('encoding: %d of %d languages\n'):format(i - 1, #langs))
      end
      for _, split in ipairs { 'train', 'valid' } do
        if path.exists(file(split, lang)) then
          tokenizer:encode_tsv(file(split, lang), corpus.stream_paths(model, split, lang))
        end
      end
    end
  end)

  local self = { dir = dir, langs = langs, file = file, tokenizer = text.load(model), streams = {}, valid_streams = {} }
  self.languages = { 'en', unpack(langs) }
  for _, lang in ipairs(langs) do
    local function streams(split)
      local paths = corpus.stream_paths(model, split, lang)
      return path.exists(paths[1]) and { data.stream.open(paths[1]), data.stream.open(paths[2]) } or nil
    end
    self.streams[lang], self.valid_streams[lang] = streams 'train', streams 'valid'
  end
  return self
end

--- A model knows pieces by number, so it goes with the tokenizer that it was trained with and no other.
function corpus.check_tokenizer(self, hash, where)
  if hash ~= self.tokenizer.hash then
    lumoe.refuse('%s was trained with another tokenizer than %s', where, self.tokenizer.path)
  end
end

--- Streams lie beside the tokenizer that made them: column 1 is English, 2 the other language.
function corpus.stream_paths(model, split, lang)
  local stem = ('%s.%s.%s'):format(model:gsub('%.model$', ''), split, lang)
  return { stem .. '.en.tokens', stem .. '.tokens' }
end

-- Translation in the directions asked for, over one split's streams.
local function translations(langs, streams, opts)
  local tasks = {}
  for _, lang in ipairs(langs) do
    local pair = streams[lang]
    if pair and opts.directions ~= 'from' then
      tasks[#tasks + 1] = { source = pair[2], target = pair[1], from = lang, to = 'en' }
    end
    if pair and opts.directions ~= 'into' then
      tasks[#tasks + 1] = { source = pair[1], target = pair[2], from = 'en', to = lang }
    end
  end
  return tasks
end

--- The mixture that is trained on: translation, and denoising of both sides.
function corpus.batches(self, opts)
  local tasks = translations(self.langs, self.streams, opts)
  for _, lang in ipairs(opts.denoising > 0 and self.langs or {}) do
    local english, other = unpack(self.streams[lang])
    tasks[#tasks + 1] = { source = other, from = lang, to = lang, kind = 'denoising' }
    tasks[#tasks + 1] = { source = english, from = 'en', to = 'en', kind = 'denoising' }
  end
  return data.batches.new {
    tokenizer = self.tokenizer, languages = self.languages, tasks = tasks, tokens = opts.batch,
    micro_batches = opts.micro_batches, temperature = opts.temperature, denoising = opts.denoising,
    max_pieces = opts.max_pieces, seed = opts.seed, source_tags = true,
  }
end

--- Every validation sentence once, or nil where there are none.
function corpus.valid_batches(self, opts)
  local tasks = translations(self.langs, self.valid_streams, opts)
  if #tasks == 0 then return nil end
  local batches = data.batches.fixed {
    tokenizer = self.tokenizer, languages = self.languages, tasks = tasks, tokens = opts.batch,
    max_pieces = opts.max_pieces, source_tags = true,
  }
  return batches.steps > 0 and batches or nil
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
