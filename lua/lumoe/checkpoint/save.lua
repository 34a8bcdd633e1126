--- Writes a checkpoint: every rank its own files, without gathering; then the index; then the name.
local C = require 'lumoe.ffi'
local cjson = require 'cjson'
local file = require 'lumoe.checkpoint.file'
local folder = require 'lumoe.checkpoint.folder'
local json = require 'lumoe.checkpoint.json'
local layout = require 'lumoe.checkpoint.layout'
local ranks = require 'lumoe.checkpoint.ranks'
local region = require 'lumoe.checkpoint.region'
local safetensors = require 'lumoe.checkpoint.safetensors'

local WANTED = { model = 'table', optimizer = 'table?', step = 'number', extra = 'table?', keep = 'number?', best = 'number?' }

local function whole_number(name, value, least)
  if value % 1 ~= 0 or value < least or value >= 2 ^ 53 then
    error(("option '%s' must be a whole number from %d, not %s"):format(name, least, tostring(value)), 0)
  end
end

-- The parts that this rank writes, by the name each has in its file. Says of every part in which file it is, on all
-- ranks alike.
local function pieces_here(wholes, held, pattern, rank)
  local here, tensors = {}, {}
  for _, h in ipairs(held) do here[h.name] = h end
  for name, whole in pairs(wholes) do
    for _, piece in ipairs(whole.pieces) do
      piece.file = pattern:format(piece.rank + 1)
      if piece.rank == rank then
        local h = here[name]
        tensors[piece.name] = { dtype = h.dtype, shape = region.held(h.region), take = h.take }
      end
    end
  end
  return tensors
end

-- Writes one group of tensors; every rank then knows the checksums of all. A rank without any writes no file.
local function write_group(part, group, held, wholes)
  local rank, size = ranks.rank(), ranks.size()
  local pattern = group .. '-%05d-of-' .. ('%05d.safetensors'):format(size)
  local tensors = pieces_here(wholes, held, pattern, rank)
  local sums = ranks.together(function()
    if next(tensors) == nil then return {} end
    -- Hugging Face's loaders want to be told this format.
    return safetensors.write(part .. '/' .. pattern:format(rank + 1), tensors, { format = 'pt' })
  end)
  local all = {}
  for _, text in ipairs(ranks.gather(cjson.encode(sums))) do
    for name, sum in pairs(cjson.decode(text)) do all[name] = sum end
  end
  return all
end

-- What the index says of a group of tensors.
local function entries(wholes, sums)
  local list = {}
  for name, whole in pairs(wholes) do
    local pieces = {}
    for i, p in ipairs(whole.pieces) do
      pieces[i] = { name = p.name, file = p.file, ranges = p.ranges, chunk = p.chunk, crc32 = sums[p.name] }
    end
    list[name] = { dtype = whole.dtype, shape = whole.shape, pieces = pieces }
  end
  return list
end

local function weight_map(wholes)
  local map, bytes = {}, 0
  for _, whole in pairs(wholes) do
    local size = C.lm_dtype_size(C['LM_' .. whole.dtype:upper()])
    for _, n in ipairs(whole.shape) do size = size * n end
    bytes = bytes + size
    for _, p in ipairs(whole.pieces) do map[p.name] = p.file end
  end
  return map, bytes
end

local function index_of(opts, parameters, optimizer)
  local map, bytes = weight_map(parameters.wholes)
  return {
    format = 'lumoe checkpoint', version = 2,
    step = opts.step, score = opts.best, extra = opts.extra or {},
    random = { seed = C.lm_random_get_seed(), step = C.lm_random_step() },
    metadata = { total_size = bytes }, weight_map = map, -- these two as Hugging Face's index has them
    parameters = entries(parameters.wholes, parameters.sums),
    optimizer = optimizer and { kind = opts.optimizer.kind, steps = opts.optimizer.steps,
      tensors = entries(optimizer.wholes, optimizer.sums) } or nil,
  }
end

local function check(root, opts)
  if root == '' then error('the folder has no name', 0) end
  whole_number('step', opts.step, 0)
  whole_number('keep', opts.keep or 2, 1)
  if opts.best and opts.best ~= opts.best then error("option 'best' is not a number (nan)", 0) end
  local ok, message = pcall(json.encode, { extra = opts.extra or {} })
  if not ok then error(message, 0) end
end

local function write(root, opts, part)
  local held = layout.of_model(opts.model)
  local parameters = { wholes = layout.whole(held) }
  parameters.sums = write_group(part, 'model', held, parameters.wholes)
  local optimizer
  if opts.optimizer then
    held = layout.of_optimizer(opts.optimizer)
    optimizer = { wholes = layout.whole(held) }
    optimizer.sums = write_group(part, 'optimizer', held, optimizer.wholes)
  end
  return ranks.together(function()
    if ranks.rank() ~= 0 then return nil end
    file.write_all(part .. '/index.json', json.encode(index_of(opts, parameters, optimizer)) .. '\n')
    local final = folder.publish(root, opts.step, part)
    folder.prune(root, opts.keep or 2, opts.step)
    return final
  end)
end

local function save(root, opts)
  ranks.together(check, root, opts)
  ranks.together(function()
    if ranks.rank() == 0 then folder.begin(root, opts.step) end
  end)
  local part = ('%s/checkpoint-%.0f.part'):format(root, opts.step)
  local ok, message = pcall(write, root, opts, part)
  if not ok then
    if ranks.rank() == 0 then pcall(folder.remove, part) end
    error(message, 0)
  end
  return (part:gsub('%.part$', ''))
end

return ranks.public('checkpoint.save', save, WANTED)
