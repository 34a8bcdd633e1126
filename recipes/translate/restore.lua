--- The model of a checkpoint, rebuilt from the options stored with it.
local lumoe = require 'lumoe'
local corpus = require 'recipes.translate.corpus'
local load = require 'recipes.translate.load'
local training = require 'recipes.translate.training'
local path = require 'pl.path'
local dist = lumoe.dist

--- where: a checkpoint, or a folder of checkpoints (its last one).  Returns the model, in evaluation, its corpus,
-- and { opts, step } as they were saved, `at` which path.
return function(where)
  local at = path.exists(path.join(where, 'index.json')) and where or lumoe.checkpoint.latest(where)
  if not at then lumoe.refuse('%s: no checkpoint there', where) end
  local saved = load(at)
  local opts = saved.extra.opts
  opts.data = nil -- prepared once, it lies in opts.data_dir
  local ranks = dist.world_size() -- a checkpoint fits any layout
  if ranks % (opts.tp or 1) ~= 0 then opts.tp = 1 end
  if ranks % (opts.ep * (opts.etp or 1)) ~= 0 then opts.ep, opts.etp = 1, 1 end
  local data = corpus.open(opts)
  corpus.check_tokenizer(data, saved.extra.tokenizer, at)
  local model = training.model(opts)
  load(at, { model = model })
  return model:eval(), data, { opts = opts, step = saved.step, at = at }
end
