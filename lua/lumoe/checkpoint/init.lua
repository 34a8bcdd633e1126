--- Checkpoints: safetensors with an index; whole or not there; loaded under any layout of ranks.
--
--     checkpoint.save('out', { model = model, optimizer = opt, step = 500, extra = { position = 64000 }, best = bleu })
--     local path = checkpoint.latest 'out'                                -- out/checkpoint-500
--     local saved = checkpoint.load(path, { model = model, optimizer = opt })  -- saved.step, saved.extra
--
-- On disk, for each step:
--   checkpoint-<step>/index.json   what is where; step, random state, extra, score
--   checkpoint-<step>/model-00001-of-00002.safetensors       parameters, a file for each rank that writes any
--   checkpoint-<step>/optimizer-00001-of-00002.safetensors   the optimizer's, f32 masters of bf16 parameters among them
-- Tensors are named by their modules' paths. Of one that is spread over ranks each writes its part, without gathering:
-- `path[4:8]` rows, `path[:,0:16]` columns, `path{0:100}` elements of the flat part that ZeRO left it; the index says
-- which (checkpoint/region.lua). The ranks that load may be others, and cut everything otherwise.
-- Under several ranks every rank calls save and load alike; what fails on one fails on all.
local folder = require 'lumoe.checkpoint.folder'
local ranks = require 'lumoe.checkpoint.ranks'
local safetensors = require 'lumoe.checkpoint.safetensors'
local source = require 'lumoe.checkpoint.source'
local tensor = require 'lumoe.tensor'

local checkpoint = {}

--- Writes DIR/checkpoint-<step>/ and returns its path. Killed or failing at any moment, it leaves the
-- former checkpoints as they were. Options:
--   model      a module
--   optimizer  its optimizer (optional)
--   step       whole number; a checkpoint of the same step is replaced
--   extra      a plain table that load gives back: configuration, position in the data, ... (optional)
--   keep = 2   how many of the newest to keep, beside the best
--   best       score of this one, more is better (optional)
checkpoint.save = require 'lumoe.checkpoint.save'

--- Reads a checkpoint's folder (or a .safetensors file, or a Hugging Face folder) into model and
-- optimizer, each optional; f32 and bf16 are converted into each other, exactly into f32, to the nearest into bf16
-- (AdamW's moments too). Returns
--   { step, extra, score, random = { seed, step }, optimizer = 'loaded' | 'fresh' }
-- 'fresh': there was no optimizer state; masters are the weights, the rest is zero. With an optimizer, the
-- random state is restored too. Everything is checked first: an error leaves model and optimizer as they were.
checkpoint.load = require 'lumoe.checkpoint.load'

--- The newest checkpoint in DIR: path, step. Nil and a message when there is none.
checkpoint.latest = ranks.public('checkpoint.latest', folder.latest)
--- The checkpoint in DIR with the highest score: path, score, step. Nil and a message when there is none.
checkpoint.best = ranks.public('checkpoint.best', folder.best)

local function read(path)
  local from, tensors = source.open(path), {}
  local index = from.index
  local names = index and index.parameters or from.tensors
  for name in pairs(names) do from:verify(name) end
  for name in pairs(names) do tensors[name] = from:tensor(name) end
  from:close()
  return tensors, from.metadata or {}
end

--- name -> tensor of a .safetensors file, of a Hugging Face folder or index, or of a checkpoint
-- (its parameters, whole); and the file's metadata. This process alone: other ranks need not call it.
checkpoint.read = ranks.public('checkpoint.read', read)

local function write(path, tensors, metadata)
  if type(tensors) ~= 'table' then error('wants a table name -> tensor, not a ' .. type(tensors), 0) end
  for name, t in pairs(tensors) do
    if type(name) ~= 'string' or not tensor.is_tensor(t) then
      error(('wants a table name -> tensor; [%s] is a %s'):format(tostring(name), type(t)), 0)
    elseif name == '__metadata__' then error("'__metadata__' cannot be a tensor's name", 0) end
  end
  for key, value in pairs(metadata or {}) do
    if type(key) ~= 'string' or type(value) ~= 'string' then error('metadata must be texts with names', 0) end
  end
  local part = path .. '.part'
  local ok, message = pcall(safetensors.write, part, tensors, metadata)
  if not ok then
    os.remove(part)
    error(message, 0)
  end
  require('lumoe.checkpoint.file').replace(part, path)
end

--- Writes name -> tensor (model:state(), say) as one .safetensors file, aside and renamed. metadata: name -> text.
checkpoint.write = ranks.public('checkpoint.write', write)

return checkpoint
