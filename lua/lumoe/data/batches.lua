--- Batches of a mixture of tasks, the same for every number of ranks.
--
--   local train = batches.new {
--     tokenizer = tok, languages = { 'en', 'de' }, tokens = 8192, micro_batches = 2, seed = 1,
--     tasks = { { source = de, target = en, from = 'de', to = 'en' }, -- streams of lumoe.data.stream
--               { source = en, from = 'en', to = 'en', kind = 'denoising' } } }
--   local batch = train:get(step, micro, rank, ranks)                 -- all counted from 0
--
-- What a step holds follows from the options, the data and the step's number alone: a run that stopped goes
-- on by asking for the next step, with as many ranks as it likes.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local options = require 'lumoe.options'
local status = require 'lumoe.status'
local text = require 'lumoe.text'

local batches = {}

local Batches = {}
Batches.__index = Batches

local KINDS = { translation = C.LM_TRANSLATION, denoising = C.LM_DENOISING }

local TASK = {
  source = 'table', target = 'table?', from = 'string', to = 'string', kind = 'string?', weight = 'number?',
}

local OPTIONS = {
  tokenizer = 'table', languages = 'table', tasks = 'table', tokens = 'number',
  micro_batches = 'number?', window = 'number?', seed = 'number?',
  temperature = 'number?', denoising = 'number?', mask_rate = 'table?', mean_span = 'number?',
  max_pieces = 'number?', too_long = 'string?', multiple = 'number?',
  source_tags = 'boolean?', start = 'string?',
}

local function piece_id(tok, piece, who)
  local id = tok:id(piece)
  if not id then options.raise(who, "the tokenizer has no piece '%s'; train it with that symbol", piece) end
  return id
end

local function set_task(out, task, opts, who)
  options.check(who .. ': a task', task, TASK)
  local tok, kind = opts.tokenizer, task.kind or 'translation'
  if not KINDS[kind] then
    options.raise(who, "a task of kind '%s': there are translation and denoising", kind)
  end
  local number = {}
  for i, language in ipairs(opts.languages) do number[language] = i - 1 end
  for _, language in ipairs { task.from, task.to } do
    if not number[language] then
      options.raise(who, "language '%s' is not among `languages`", language)
    end
  end
  out.source = task.source.handle
  if task.target then out.target = task.target.handle end
  for _, stream in ipairs { task.source, task.target } do
    if stream.hash ~= tok.hash then
      options.raise(who, '%s was made by another tokenizer than %s', stream.path, tok.path)
    end
  end
  out.kind, out.tag = KINDS[kind], KINDS[kind]
  out.source_language, out.target_language = number[task.from], number[task.to]
  out.prefix[0], out.prefixes = piece_id(tok, text.tag(task.to), who), 1
  if opts.source_tags then
    out.prefix[1], out.prefixes = piece_id(tok, text.tag(task.from), who), 2
  end
  out.start = opts.start == 'bos' and tok.bos or piece_id(tok, text.tag(task.to), who)
  out.weight = task.weight or 1
end

local function build(opts, who, fixed)
  options.check(who, opts, OPTIONS)
  local tok, rate = opts.tokenizer, opts.mask_rate or { 0.15, 0.35 }
  if not tok.eos then options.raise(who, 'tokenizer %s has no eos piece', tok.path) end
  if opts.start and opts.start ~= 'tag' and opts.start ~= 'bos' then
    options.raise(who, "`start` is '%s': targets start with their 'tag' or with 'bos'", opts.start)
  end
  if opts.start == 'bos' and not tok.bos then
    options.raise(who, 'tokenizer %s has no bos piece', tok.path)
  end
  if opts.too_long and opts.too_long ~= 'drop' and opts.too_long ~= 'cut' then
    options.raise(who, "`too_long` is '%s': such sentences are to 'drop' or to 'cut'", opts.too_long)
  end

  local tasks = ffi.new('lm_task[?]', math.max(#opts.tasks, 1))
  local denoises = false
  for i, task in ipairs(opts.tasks) do
    set_task(tasks[i - 1], task, opts, who)
    denoises = denoises or task.kind == 'denoising'
  end
  local micro = opts.micro_batches or 1
  local set = ffi.new('lm_batches_options', {
    seed = opts.seed or 1,
    tokens = opts.tokens,
    micro_batches = micro,
    window = opts.window or micro * math.ceil(512 / micro),
    max_pieces = opts.max_pieces or 128,
    cut = opts.too_long == 'cut' and 1 or 0,
    multiple = opts.multiple or 1,
    pad = tok.pad or 0,
    eos = tok.eos,
    mask = denoises and piece_id(tok, '<mask>', who) or -1,
    fixed = fixed and 1 or 0,
    temperature = opts.temperature or 1,
    denoising = opts.denoising or 0.1,
    mask_low = rate[1], mask_high = rate[2] or rate[1],
    mean_span = opts.mean_span or 3,
  })
  local out = ffi.new 'lm_batches *[1]'
  status.check(C.lm_batches_new(set, tasks, #opts.tasks, out))
  local self = {
    handle = ffi.gc(out[0], C.lm_batches_free),
    tasks = opts.tasks, -- holds the streams, which C only borrows
    pad = set.pad,
    shape = ffi.new 'lm_batch_shape',
  }
  self.fingerprint = ('%016x'):format(C.lm_batches_fingerprint(self.handle))
  local steps = C.lm_batches_steps(self.handle)
  if steps >= 0 then self.steps = steps end
  return setmetatable(self, Batches)
end

--- Endless batches for training. A row is
--   source      <2TO> [<2FROM>] pieces eos
--   target in   <2TO> pieces
--   target out  pieces eos
-- Options, beside `tokenizer`, `tasks` and `languages` (which gives each language its number, from 0):
--   tokens         of a step, source and target with tags and ends, padding not counted: about so many
--   micro_batches  parts of a step, each of rows of about one length (1)
--   window         micro-batches drawn and sorted together, a multiple of micro_batches (about 512)
--   temperature    a task's share is its size to the power 1/temperature, times its `weight` (1)
--   denoising      the share of the tasks of that kind (0.1): BART's span corruption of
--   mask_rate        { from, to } of the pieces ({ 0.15, 0.35 }), in spans of
--   mean_span        pieces (3), each span one `<mask>`
--   max_pieces     of a sentence (128); longer ones are ...
--   too_long       ... 'drop'ped (default) or 'cut'
--   multiple       padded lengths are rounded up to it (1)
--   source_tags    the source's language follows the target's tag (false)
--   start          targets start with their 'tag' (default) or with 'bos'
--   seed           (1)
---@param opts table
---@return lumoe.Batches
function batches.new(opts) return build(opts, 'batches.new', false) end

--- Each sentence once, longest first, for evaluation: `steps` batches of at most `tokens`, padding counted.
-- A batch's `sequence` is the sentence's place in its stream, to undo the order. Nothing is dropped: what is
-- longer than max_pieces is cut. A task of translation needs no target.
---@param opts table  as of batches.new
---@return lumoe.Batches
function batches.fixed(opts) return build(opts, 'batches.fixed', true) end

---@class lumoe.Batches
---@field steps integer?       of fixed batches
---@field fingerprint string   of options and data: a run must be resumed with the same
---@field pad integer          the id that fills rows up

local FIELDS = {
  'src', 'tgt_in', 'tgt_out', 'src_lens', 'tgt_lens', 'src_language', 'tgt_language', 'tag', 'task',
}

local COUNTS = {
  'rows', 'src_len', 'tgt_len', 'first', 'src_tokens', 'tgt_tokens', 'micro_rows', 'micro_src_tokens',
  'micro_tgt_tokens', 'step_rows', 'step_src_tokens', 'step_tgt_tokens',
}

--- One rank's rows of a micro-batch, perhaps none. Everything counts from 0.
-- `src` is [rows, src_len], `tgt_in` and `tgt_out` [rows, tgt_len], the rest [rows]: int32_t data, but
-- `sequence` (the row's number in the whole step), int64_t. `tag` is 0 in translation, 1 in denoising; `task`
-- the place in `tasks`. `step_tgt_tokens` are the targets of the whole step, to divide its loss by: every
-- rank has it without asking.
---@param step integer
---@param micro integer?  default 0
---@param rank integer?   default 0
---@param ranks integer?  default 1
---@return table batch  rows, src_len, tgt_len, first, {src,tgt}_tokens, micro_*, step_* and the buffers
function Batches:get(step, micro, rank, ranks)
  micro, rank, ranks = micro or 0, rank or 0, ranks or 1
  local shape = self.shape
  status.check(C.lm_batches_shape(self.handle, step, micro, rank, ranks, shape))
  local batch = { step = step }
  for _, count in ipairs(COUNTS) do batch[count] = tonumber(shape[count]) end
  local rows, src_len, tgt_len = batch.rows, batch.src_len, batch.tgt_len
  batch.sequence = ffi.new('int64_t[?]', rows)
  for _, field in ipairs(FIELDS) do
    local width = field == 'src' and src_len or (field == 'tgt_in' or field == 'tgt_out') and tgt_len or 1
    batch[field] = ffi.new('int32_t[?]', rows * width)
  end
  local buffers = ffi.new 'lm_batch_buffers' -- pointers only: `batch` holds what they point to
  for _, field in ipairs(FIELDS) do buffers[field] = batch[field] end
  buffers.sequence = batch.sequence
  status.check(C.lm_batches_fill(self.handle, step, micro, rank, ranks, buffers))
  return batch
end

--- What of task `i` (counted from 1, as listed) there is to draw from.
---@param i integer
---@return { sentences: integer, kept: integer, long: integer, empty: integer, share: number }
function Batches:task(i)
  local about = ffi.new 'lm_task_info'
  status.check(C.lm_batches_task(self.handle, i - 1, about))
  return {
    sentences = tonumber(about.sentences), kept = tonumber(about.kept),
    long = tonumber(about.long_ones), empty = tonumber(about.empty_ones), share = about.share,
  }
end

--- Where in the data `step` begins: what a checkpoint stores, and the epochs of each task for the log.
---@param step integer
---@return { step: integer, fingerprint: string, epochs: number[] }
function Batches:position(step)
  local epochs = {}
  for i = 1, #self.tasks do epochs[i] = C.lm_batches_epoch(self.handle, i - 1, step) end
  return { step = step, fingerprint = self.fingerprint, epochs = epochs }
end

return batches
