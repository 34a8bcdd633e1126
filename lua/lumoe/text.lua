--- Text to pieces and back: SentencePiece tokenizers, trained here or opened as they are.
--
--   local tok = text.train { model = 'de-en.model', vocab_size = 8000,
--     symbols = { '<2de>', '<2en>', '<mask>' },
--     columns = { { 'train.de.tsv', 1 }, { 'train.de.tsv', 2 } } }
--   tok:encode 'Guten Tag'                                           --> { 412, 87, ... }
--   tok:encode_tsv('train.de.tsv', { 'en.stream', 'de.stream' })     -- columns 1 and 2
--
-- What has as many values as a corpus has pieces stays in C: encode_tsv writes token streams
-- (lumoe.data.stream), which batches (lumoe.data.batches) read.
local ffi = require 'ffi'
local lib = require 'lumoe.ffi'
local options = require 'lumoe.options'
local status = require 'lumoe.status'
local stream = require 'lumoe.data.stream'

local share = debug.getinfo(1, 'S').source:match '^@(.*)/lua/lumoe/text%.lua$'
do
  local file = assert(io.open(share .. '/text.h'))
  ffi.cdef(file:read '*a')
  file:close()
end
local C = ffi.load(share .. '/../../lib/liblumoe_text.so')

local text = { C = C } -- the field anchors the library

local Tokenizer = {}
Tokenizer.__index = Tokenizer

local SPECIAL = { pad = 0, unk = 1, bos = 2, eos = 3 }

--- Opens a SentencePiece `.model` file, whoever trained it.
-- Its special ids are asked of the model: `tok.pad`, `tok.unk`, `tok.bos`, `tok.eos`; nil: it has none.
---@param path string
---@return lumoe.Tokenizer  with fields path, size, pad, unk, bos, eos, hash
function text.load(path)
  if type(path) ~= 'string' then options.raise('text.load', 'wants a path, not a %s', type(path)) end
  local out = ffi.new 'lm_text *[1]'
  status.check(C.lm_text_open(path, out))
  local handle = ffi.gc(out[0], C.lm_text_close)
  local self = { path = path, handle = handle, size = C.lm_text_size(handle) }
  self.hash = ('%016x'):format(C.lm_text_hash(handle))
  for name, which in pairs(SPECIAL) do
    local id = C.lm_text_special(handle, which)
    if id >= 0 then self[name] = id end
  end
  return setmetatable(self, Tokenizer)
end

--- The piece that tells a model to write in `language`: `<2de>`.
---@param language string
---@return string
function text.tag(language) return '<2' .. language .. '>' end

local TRAIN_OPTIONS = {
  model = 'string', vocab_size = 'number', columns = 'table?', lines = 'table?', symbols = 'table?',
  type = 'string?', coverage = 'number?', normalization = 'string?', byte_fallback = 'boolean?',
  sample = 'number?', temperature = 'number?', seed = 'number?', threads = 'number?',
}

-- The C side keeps pointers into these strings for one call: `anchors` holds them for as long.
local function set_columns(how, columns, anchors)
  local paths = ffi.new('const char *[?]', #columns)
  local numbers = ffi.new('int32_t[?]', #columns)
  for i, column in ipairs(columns) do
    if type(column) == 'string' then column = { column } end
    paths[i - 1] = column[1]
    numbers[i - 1] = (column[2] or 0) - 1
    anchors[#anchors + 1] = column[1]
  end
  how.columns, how.path, how.column = #columns, paths, numbers
  anchors[#anchors + 1], anchors[#anchors + 2] = paths, numbers
end

--- Trains a tokenizer, writes it to `model` and opens it. Ids: pad 0, unk 1, bos 2, eos 3, the symbols.
-- The same files and options give the same model. Options, beside `model` and `vocab_size`:
--   columns        { path, column } each, columns counted from 1; a path alone: whole lines; files plain or gzip
--   lines          a list of sentences instead
--   symbols        pieces that no text is ever encoded to, such as `<2de>` or `<mask>`
--   type           'bpe' (default), 'unigram', 'word' or 'char'
--   coverage       share of the characters' occurrences that get a piece (0.9995)
--   normalization  'nmt_nfkc' (default), 'nfkc', 'identity', ...
--   byte_fallback  other characters become bytes, not `unk` (false)
--   sample         at most so many sentences (240,000), chosen evenly by `seed` (1)
--   temperature    a column's share of them is its size to the power 1/temperature (1)
--   threads        (2)
---@param opts table
---@return lumoe.Tokenizer tokenizer
---@return integer sentences  trained on
function text.train(opts)
  options.check('text.train', opts, TRAIN_OPTIONS)
  if (opts.columns == nil) == (opts.lines == nil) then
    options.raise('text.train', 'give either `columns` or `lines`')
  end

  local how, anchors = ffi.new 'lm_text_training', {}
  local function anchored(s)
    anchors[#anchors + 1] = s
    return s
  end
  how.model = opts.model
  how.type = opts.type or 'bpe'
  how.normalization = opts.normalization or 'nmt_nfkc'
  how.symbols = anchored(table.concat(opts.symbols or {}, '\n'))
  how.vocab_size = opts.vocab_size
  how.byte_fallback = opts.byte_fallback and 1 or 0
  how.threads = opts.threads or 2
  how.coverage = opts.coverage or 0.9995
  how.sample = opts.sample or 240000
  how.seed = opts.seed or 1
  how.temperature = opts.temperature or 1
  if opts.lines then
    local lines = anchored(table.concat(opts.lines, '\n'))
    how.lines, how.lines_bytes = lines, #lines
  else
    set_columns(how, opts.columns, anchors)
  end
  local sentences = ffi.new 'int64_t[1]'
  status.check(C.lm_text_train(how, sentences))
  assert(#anchors > 0) -- alive until here
  return text.load(opts.model), tonumber(sentences[0])
end

---@class lumoe.Tokenizer
---@field path string
---@field size integer  number of pieces
---@field pad integer?
---@field unk integer?
---@field bos integer?
---@field eos integer?
---@field hash string  of the model file: streams carry it

--- The ids of one sentence, without bos and eos.
---@param s string
---@return integer[] ids  a table, counted from 1; the ids count from 0
function Tokenizer:encode(s)
  if type(s) ~= 'string' then options.raise('encode', 'wants a string, not a %s', type(s)) end
  local ids, count = ffi.new 'const int32_t *[1]', ffi.new 'int64_t[1]'
  status.check(C.lm_text_encode(self.handle, s, #s, ids, count))
  local out = {}
  for i = 1, tonumber(count[0]) do out[i] = ids[0][i - 1] end
  return out
end

--- The text of ids: pad, bos, eos and symbols are nothing in it.
---@param ids integer[]|ffi.cdata*  a table, or int32_t data
---@param count integer?            how many, if cdata
---@return string
function Tokenizer:decode(ids, count)
  if type(ids) == 'table' then
    count = #ids
    ids = ffi.new('int32_t[?]', count, ids)
  elseif type(ids) ~= 'cdata' or type(count) ~= 'number' then
    options.raise('decode', 'wants a table of ids, or int32_t data and how many')
  end
  local out, bytes = ffi.new 'const char *[1]', ffi.new 'int64_t[1]'
  status.check(C.lm_text_decode(self.handle, ids, count, out, bytes))
  return ffi.string(out[0], tonumber(bytes[0]))
end

--- The id of a piece, or nil if the vocabulary lacks it.
---@param piece string
---@return integer?
function Tokenizer:id(piece)
  local id = C.lm_text_id(self.handle, piece, #piece)
  return id >= 0 and id or nil
end

--- The piece of an id.
---@param id integer
---@return string
function Tokenizer:piece(id)
  local out, bytes = ffi.new 'const char *[1]', ffi.new 'int64_t[1]'
  status.check(C.lm_text_piece(self.handle, id, out, bytes))
  return ffi.string(out[0], tonumber(bytes[0]))
end

--- Encodes columns of a file of tab-separated lines, plain or gzip, to token streams, one file each, and opens them.
-- `outputs[c]` is the stream of column c, counted from 1. Streams made earlier from this very file (by size
-- and time) with this very tokenizer are taken as they are, unless `force`.
---@param path string
---@param outputs table<integer, string>
---@param opts { threads: integer?, force: boolean? }?
---@return table<integer, lumoe.Stream> streams  by column
---@return boolean encoded  false: all were there already
function Tokenizer:encode_tsv(path, outputs, opts)
  opts = options.check('encode_tsv', opts or {}, { threads = 'number?', force = 'boolean?' })
  local columns = {}
  for column in pairs(outputs) do columns[#columns + 1] = column end
  table.sort(columns)
  if #columns == 0 then options.raise('encode_tsv', 'no column is asked for') end

  local current, model = not opts.force, C.lm_text_hash(self.handle)
  for _, column in ipairs(columns) do
    current = current and lib.lm_stream_current(outputs[column], path, column - 1, model) == 1
  end
  if not current then
    local numbers, names = ffi.new('int32_t[?]', #columns), ffi.new('const char *[?]', #columns)
    for i, column in ipairs(columns) do
      numbers[i - 1] = column - 1
      names[i - 1] = outputs[column]
    end
    local lines = ffi.new 'int64_t[1]'
    local threads = opts.threads or 2
    status.check(C.lm_text_encode_file(self.handle, path, #columns, numbers, names, threads, lines))
  end
  local streams = {}
  for _, column in ipairs(columns) do streams[column] = stream.open(outputs[column]) end
  return streams, not current
end

return text
