--- What was typed, kept between sessions in one text file: an entry a line, further lines of an entry behind a tab.
-- Entries are appended as they come, so that two sessions do not lose each other's.
local lfs = require 'lfs'

local history = { LIMIT = 10000 }

--- $LUMOE_HISTORY, else $XDG_STATE_HOME/lumoe/history, else ~/.lumoe_history. Nil: keep none (LUMOE_HISTORY is empty).
---@return string?
function history.path()
  local path = os.getenv('LUMOE_HISTORY')
  if path then return path ~= '' and path or nil end
  local state, home = os.getenv('XDG_STATE_HOME'), os.getenv('HOME')
  if state and state ~= '' then
    lfs.mkdir(state)
    lfs.mkdir(state .. '/lumoe')
    return state .. '/lumoe/history'
  end
  return home and home .. '/.lumoe_history'
end

local function encode(entry)
  return (entry:gsub('^%s+', ''):gsub('%s+$', ''):gsub('\n', '\n\t')) .. '\n'
end

local function decode(file)
  local entries = {}
  for line in file:lines() do
    if line:sub(1, 1) == '\t' and #entries > 0 then
      entries[#entries] = entries[#entries] .. '\n' .. line:sub(2)
    elseif line ~= '' then
      entries[#entries + 1] = line
    end
  end
  return entries
end

-- Of equal entries the newest stays; of all, the newest `limit`.
local function distinct(entries, limit)
  local seen, newest_first = {}, {}
  for i = #entries, 1, -1 do
    local entry = entries[i]
    if not seen[entry] and #newest_first < limit then
      seen[entry] = true
      newest_first[#newest_first + 1] = entry
    end
  end
  local out = {}
  for i = #newest_first, 1, -1 do out[#out + 1] = newest_first[i] end
  return out
end

--- The entries of the file, oldest first, without duplicates. A file that has outgrown them is written anew.
---@param path string
---@param limit integer?
---@return string[]
function history.load(path, limit)
  local file = io.open(path)
  if not file then return {} end
  local all = decode(file)
  file:close()
  local entries = distinct(all, limit or history.LIMIT)
  if #all > 2 * #entries or #all > (limit or history.LIMIT) then
    local aside = path .. '.new'
    local out = io.open(aside, 'w')
    if out then
      for _, entry in ipairs(entries) do out:write(encode(entry)) end
      if out:close() then os.rename(aside, path) end
    end
  end
  return entries
end

--- Appends an entry.
---@return boolean? ok
---@return string? message  why it could not be kept
function history.append(path, entry)
  local file, message = io.open(path, 'a')
  if not file then return nil, message end
  file:write(encode(entry))
  return file:close()
end

return history
