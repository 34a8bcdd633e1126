--- A folder of checkpoints: DIR/checkpoint-<step>/, each whole or not there at all.
--
-- One is written as checkpoint-<step>.part, synced, and renamed; one goes by being renamed to that
-- first. So whatever has the plain name and an index is whole, and a .part is rubbish of a killed run.
local lfs = require 'lfs'
local dir = require 'pl.dir'
local path = require 'pl.path'
local file = require 'lumoe.checkpoint.file'
local json = require 'lumoe.checkpoint.json'

local folder = {}

local function name_of(root, step) return ('%s/checkpoint-%.0f'):format(root, step) end

local function remove(p)
  local ok, message = dir.rmtree(p)
  if not ok then error(('%s: cannot be removed: %s'):format(p, tostring(message)), 0) end
end

--- Steps of the checkpoints there are, ascending; none where there is no such folder.
---@param root string
---@return integer[]
function folder.steps(root)
  local steps = {}
  if not path.isdir(root) then return steps end
  for entry in lfs.dir(root) do
    local step = tonumber(entry:match '^checkpoint%-(%d+)$')
    if step and path.isfile(root .. '/' .. entry .. '/index.json') then steps[#steps + 1] = step end
  end
  table.sort(steps)
  return steps
end

--- The newest checkpoint: path and step; nil and a message when there is none.
---@param root string
---@return string? path, integer|string step_or_message
function folder.latest(root)
  local steps = folder.steps(root)
  if #steps == 0 then return nil, root .. ': there is no checkpoint' end
  return name_of(root, steps[#steps]), steps[#steps]
end

-- nil also for an index that cannot be read: a damaged checkpoint must not stop a run from saving.
local function score(root, step)
  local ok, text = pcall(file.read_all, name_of(root, step) .. '/index.json')
  local index = ok and json.decode(text)
  return type(index) == 'table' and type(index.score) == 'number' and index.score or nil
end

--- The checkpoint with the highest score, the later of equal ones: path, score; nil and a message.
---@param root string
---@return string? path, number|string score_or_message, integer? step
function folder.best(root)
  local best, best_step
  for _, step in ipairs(folder.steps(root)) do
    local s = score(root, step)
    if s and (not best or s >= best) then best, best_step = s, step end
  end
  if not best then return nil, root .. ': there is no checkpoint with a score' end
  return name_of(root, best_step), best, best_step
end

--- Removes what a killed run left, and makes the place for a new checkpoint. Returns its path.
---@param root string
---@param step integer
---@return string
function folder.begin(root, step)
  local ok, message = dir.makepath(root)
  if not ok then error(('%s: cannot be made: %s'):format(root, message), 0) end
  for entry in lfs.dir(root) do
    local old = entry:match '^(checkpoint%-%d+)%.old$' -- runtime/file.c, exchange
    if old and not path.exists(root .. '/' .. old) then file.replace(root .. '/' .. entry, root .. '/' .. old)
    elseif old or entry:match '^checkpoint%-%d+%.part$' then remove(root .. '/' .. entry) end
  end
  local part = name_of(root, step) .. '.part'
  ok, message = lfs.mkdir(part)
  if not ok then error(('%s: cannot be made: %s'):format(part, message), 0) end
  return part
end

--- Gives a finished .part its name; a checkpoint of the same step gives way to it. Returns its path.
function folder.publish(root, step, part)
  local final = name_of(root, step)
  file.sync_dir(part)
  local swapped = file.replace(part, final)
  file.sync_dir(root)
  if swapped then remove(part) end
  return final
end

--- Removes all but the newest `keep`, the one of `step`, and the best.
function folder.prune(root, keep, step)
  local steps, kept = folder.steps(root), { [step] = true }
  for i = math.max(1, #steps - keep + 1), #steps do kept[steps[i]] = true end
  local _, _, best = folder.best(root)
  if best then kept[best] = true end
  for _, s in ipairs(steps) do
    if not kept[s] then
      local part = name_of(root, s) .. '.part'
      file.replace(name_of(root, s), part)
      remove(part)
    end
  end
end

folder.remove = remove

return folder
