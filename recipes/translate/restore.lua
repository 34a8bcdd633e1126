--- The model of a checkpoint, rebuilt from the options stored with it.
local lumoe = require 'lumoe'
local training = require 'recipes.translate.training'
local path = require 'pl.path'
local checkpoint = lumoe.checkpoint

--- where: a checkpoint, or a folder of checkpoints (its last one).  Returns the model, in evaluation, and
-- { opts, step, … } as they were saved.
return function(where)
  local at = path.exists(path.join(where, 'index.json')) and where or checkpoint.latest(where)
  if not at then error(where .. ': no checkpoint there', 0) end
  local saved = checkpoint.peek(at)
  local model = training.model(saved.extra.opts)
  checkpoint.load(at, { model = model })
  return model:eval(), { opts = saved.extra.opts, step = saved.step }
end
