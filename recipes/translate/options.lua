--- The command line of the translation recipes, one option a line.
local parser = require 'recipes.parser'
local dist = require('lumoe').dist
local languages = require 'lumoe.data.languages'

local options = {}

--- A converter to a number in [low, high]; whole: no fraction.
local function number(low, high, whole)
  return function(text)
    local n = tonumber(text)
    if not n or n ~= n then return nil, ("'%s' is no number"):format(text) end
    if n < low or n > high or (whole and n % 1 ~= 0) then
      return nil, ("'%s' is not %s %g to %g"):format(text, whole and 'a whole number from' or 'in', low, high)
    end
    return n
  end
end
local function count(low, high) return number(low, high or 1e9, true) end

options.count = count

local function codes(text)
  local ok, list = pcall(languages.parse, text)
  if not ok then return nil, list end
  return list
end

--- The options of one run, with defaults filled in.
function options.parse(arguments)
  local p = parser('lumoe recipes/translate.lua',
    'Trains a multilingual translator with Mixture-of-Experts layers on real text, evaluates it and translates.')
  local function group(title, ...) p:group(title, ...) end
  local function option(names, default, convert, text)
    return p:option(names, text):convert(convert):default(default ~= nil and tostring(default) or nil)
  end

  group('Data',
    p:option('--langs', 'Languages with English: a list as de,fr, or 4, 8, 50 (4; with --data: those found there)')
      :convert(codes):argname 'LIST',
    p:option('--data', 'A directory of your own parallel text, instead of fetching Debian\'s'):argname 'DIR',
    p:option('--data-dir', 'Where prepared data is kept (data/LANGS; with --data: data/NAME)'):argname 'DIR',
    p:option('--directions', 'into English, from English, or both', 'into'):choices { 'into', 'from', 'both' },
    option('--denoising', 0.1, number(0, 1), 'Share of examples that are span-corrupted text'):argname 'SHARE',
    option('--temperature', 1.5, number(0.1, 100), 'Flattens the languages\' shares: size ^ (1 / T)'):argname 'T',
    option('--vocab', 8000, count(300, 200000), 'Pieces of the tokenizer'):argname 'N',
    option('--max-pieces', 64, count(4, 1024), 'Longer sentences are not trained on'):argname 'N')
  group('Model',
    option('--dim', 192, count(8), 'Width'):argname 'N',
    option('--heads', 4, count(1), 'Attention heads'):argname 'N',
    option('--hidden', 640, count(8), 'Width of a feed-forward part, and of an expert'):argname 'N',
    option('--encoder-layers', 4, count(1), 'Layers of the encoder'):argname 'N',
    option('--decoder-layers', 2, count(1), 'Layers of the decoder'):argname 'N',
    option('--experts', 8, count(1), 'Experts in every second layer; 1: a dense model'):argname 'N',
    option('--top-k', 1, count(1), 'Experts that see a token'):argname 'K',
    option('--capacity', 1.25, number(0, 1e6), 'Capacity factor in training; 0: dropless'):argname 'F',
    p:option('--select', 'Who stays when an expert is full: random (RTS), position, probability', 'random')
      :choices { 'random', 'position', 'probability' },
    option('--balance', 0.01, number(0, 100), 'Weight of the load-balancing loss'):argname 'W',
    option('--noise', 0, number(0, 100), 'Scale of the noise on the router\'s logits'):argname 'S',
    option('--dropout', 0.1, number(0, 0.99), 'Dropout'):argname 'P')
  group('Training',
    p:option('--minutes', 'Time budget of training, turned once into steps (15)'):argname 'M':convert(number(0, 1e6)),
    p:option('--steps', 'Steps, instead of minutes'):argname 'N':convert(count(0)),
    option('--batch', 4096, count(16), 'Tokens of a step, source and target'):argname 'N',
    option('--micro-batches', 1, count(1), 'Parts of a step, for less memory'):argname 'N',
    option('--lr', 0.003, number(0, 10), 'Peak learning rate'):argname 'LR',
    p:option('--schedule', 'After the warm-up: cosine, linear, inverse_sqrt or constant', 'cosine')
      :choices { 'cosine', 'linear', 'inverse_sqrt', 'constant' },
    option('--warmup', 300, count(0), 'Steps to the peak'):argname 'N',
    option('--label-smoothing', 0.1, number(0, 1), 'Label smoothing'):argname 'E',
    option('--clip', 1, number(0, 1e9), 'Largest norm of the gradient'):argname 'N',
    option('--seed', 1, count(0), 'Seed of everything random'):argname 'N',
    p:option('--precision', 'f32, bf16, or auto: bf16 where the CPU has it', 'auto')
      :choices { 'auto', 'f32', 'bf16' },
    p:flag('--recompute', 'Activation checkpointing: layers are computed again in backward, for less memory'),
    option('--ep', 1, count(1), 'Places over which the experts are spread'):argname 'N',
    option('--etp', 1, count(1), 'Ranks of a place: each has a slice of its experts'):argname 'N',
    option('--tp', 1, count(1), 'Ranks that share a batch: heads, hidden sizes and vocabulary are cut over them'):argname 'N',
    p:option('--exchange', 'How rows travel to experts: rows, once (a token to each rank once), two_level (by host)', 'rows')
      :choices { 'rows', 'once', 'two_level' },
    option('--zero-dense', 0, count(0, 3), 'ZeRO: replicas divide 1 optimizer state, 2 and gradients, 3 and parameters'):argname 'N',
    option('--zero-expert', 0, count(0, 3), 'The same for the parameters of experts'):argname 'N',
    p:option('--offload', 'To files in $TMPDIR: the optimizer\'s state and gradients, or parameters too')
      :choices { 'optimizer', 'parameters' })
  group('Output',
    p:option('--out', 'Folder of checkpoints, logs and results', 'runs/translate'):argname 'DIR',
    p:flag('--resume', 'Go on from the last checkpoint in --out'),
    option('--checkpoint-minutes', 2, number(0, 1e6), 'Time between checkpoints'):argname 'M',
    option('--log-every', 10, count(1), 'Steps between records in metrics.jsonl'):argname 'N',
    option('--beam', 4, count(1, 64), 'Beams in evaluation; 1: greedy'):argname 'N',
    option('--test-sentences', 400, count(0), 'Test sentences of each direction; 0: all'):argname 'N',
    p:flag('--no-eval', 'Stop after training'),
    p:flag('--compare-dense', 'Then train the dense twin on the same tokens, and report both'))

  local opts = p:parse(arguments)
  if opts.minutes and opts.steps then p:error '--minutes and --steps: give one of them' end
  if not opts.langs and not opts.data then opts.langs = languages.parse '4' end
  if not opts.steps then opts.minutes = opts.minutes or 15 end
  if opts.top_k > opts.experts then
    p:error(('--top-k %d: there are only %d experts'):format(opts.top_k, opts.experts))
  end
  if opts.dim % opts.heads ~= 0 then p:error(('--dim %d does not divide into --heads %d'):format(opts.dim, opts.heads)) end
  if opts.dim / opts.heads % 2 ~= 0 then
    p:error(('--dim %d, --heads %d: a head must have an even width for rotary positions'):format(opts.dim, opts.heads))
  end
  local ranks = dist.world_size()
  local function divides(what, n)
    if ranks % n ~= 0 then p:error(('%s does not divide the %d rank%s of this job'):format(what, ranks, ranks == 1 and '' or 's')) end
  end
  divides(('--ep %d'):format(opts.ep), opts.ep)
  divides(('--ep %d times --etp %d'):format(opts.ep, opts.etp), opts.ep * opts.etp)
  divides(('--tp %d'):format(opts.tp), opts.tp)
  if opts.heads % opts.tp ~= 0 then p:error(('--heads %d do not divide among --tp %d ranks'):format(opts.heads, opts.tp)) end
  return opts
end

return options
