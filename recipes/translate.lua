--- Trains a multilingual translator: a scaled-down Z-code M3 (arXiv 2109.10465), an encoder-decoder
-- Transformer with experts in every second layer, on translation and denoising of many languages at once.
--
--   ./lumoe recipes/translate.lua                        de fr es it into English, 15 minutes
--   ./lumoe recipes/translate.lua --langs de,ja --minutes 10 --experts 16
--   ./lumoe -np 2 recipes/translate.lua --ep 2           experts spread over two processes
--   ./lumoe -np 4 recipes/translate.lua --ep 2 --tp 2    and every layer cut over pairs of them
local lumoe = require 'lumoe'
local comparison = require 'recipes.translate.comparison'
local corpus = require 'recipes.translate.corpus'
local evaluation = require 'recipes.translate.evaluation'
local options = require 'recipes.translate.options'
local training = require 'recipes.translate.training'
local dir = require 'pl.dir'
local path = require 'pl.path'
local tablex = require 'pl.tablex'
local utils = require 'pl.utils'

local opts = options.parse(arg)
local lead = lumoe.dist.rank() == 0
local function say(format, ...)
  if lead then io.stderr:write(format:format(...), '\n') end
end

-- 0. A folder is one run's: --resume goes on from its newest checkpoint, which must not be another run's.
local earlier = not opts.resume and lumoe.checkpoint.latest(opts.out)
if earlier then
  lumoe.refuse('--out %s: a run is there already (%s); go on with it by --resume, or name another folder', opts.out,
    path.basename(earlier))
end

-- 1. Text: real, aligned, split so that no test sentence is seen in training.
local data = corpus.open(opts)
opts.langs, opts.data_dir = data.langs, data.dir
opts.vocab = data.tokenizer.size
if opts.precision == 'auto' then opts.precision = lumoe.has_bf16() and 'bf16' or 'f32' end

-- 2. Training.
local function resume_command()
  local words = { 'lumoe', arg[0] }
  local ranks = tostring(lumoe.dist.world_size())
  if os.getenv 'SLURM_STEP_NUM_TASKS' == ranks then words = { 'srun', '--mpi=pmix', '-n', ranks, 'lumoe', arg[0] }
  elseif ranks ~= '1' then words = { 'lumoe', '-np', ranks, arg[0] } end
  for _, word in ipairs(arg) do
    if word ~= '--resume' then words[#words + 1] = utils.quote_arg(word) end
  end
  words[#words + 1] = '--resume'
  return table.concat(words, ' ')
end

local function train(run, out)
  if lead then
    local ok, message = dir.makepath(out)
    if not ok then lumoe.refuse('--out %s: cannot be made: %s', out, message) end
  end
  local model, result = training.run(run, data, out)
  if result.stopped then
    say('stopped at step %d; go on with: %s', result.step, resume_command())
    os.exit(0)
  end
  say('trained %d steps in %.0f s: %.2f M tokens, %.0f tokens/s', result.step, result.seconds, result.tokens / 1e6,
    result.tokens / math.max(result.seconds, 1e-9))
  return model, result
end

-- 3. Evaluation on sentences that were held out.
local function evaluate(model, result, out, run)
  local all, active = model:sizes()
  return evaluation.run(model, data, run, out, {
    about = {
      languages = table.concat(opts.langs, ' '), parameters = all, ['active parameters'] = active, experts = run.experts,
      precision = opts.precision, steps = result.step, ['training seconds'] = math.floor(result.seconds),
      ['tokens seen'] = result.tokens, ['tokens per second'] = math.floor(result.tokens / math.max(result.seconds, 1e-9)),
    },
    records = path.join(out, 'metrics.jsonl'),
  })
end

local model, result = train(opts, opts.out)
local own = not opts.no_eval and evaluate(model, result, opts.out, opts)

-- 4. The dense twin: a token meets as wide a feed-forward part as one expert is; the same tokens.
if opts.compare_dense then
  local out = path.join(opts.out, 'dense')
  local twin = tablex.update(tablex.copy(opts), { experts = 1, top_k = 1, ep = 1, etp = 1, steps = result.step })
  twin.resume = opts.resume and lumoe.checkpoint.latest(out) ~= nil
  say('\nthe dense twin, %d steps:', twin.steps)
  local dense, dense_result = train(twin, out)
  local other = not opts.no_eval and evaluate(dense, dense_result, out, twin)
  if own and other then comparison.run(own, other, opts.out) end
end
