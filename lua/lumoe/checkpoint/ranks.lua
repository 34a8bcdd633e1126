--- Saving and loading as one act of all ranks: what one meets, all learn.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local caller = require 'lumoe.caller'
local options = require 'lumoe.options'

local ranks = {}

local function check(st)
  if st < 0 then error(ffi.string(C.lm_last_error()), 0) end
  return st
end

function ranks.rank() return check(C.lm_dist_rank()) end
function ranks.size() return check(C.lm_dist_world_size()) end

--- Every rank's text, in the order of the ranks.
---@param text string
---@return string[]
function ranks.gather(text)
  local n = ranks.size()
  if n == 1 then return { text } end
  local lengths, mine = ffi.new('int64_t[?]', n), ffi.new('int64_t[1]', #text)
  check(C.lm_all_gather(nil, mine, 8, lengths))
  local total = 0
  for r = 0, n - 1 do total = total + tonumber(lengths[r]) end
  local all = ffi.new('char[?]', math.max(total, 1))
  check(C.lm_all_gather_v(nil, text, lengths, all))
  local texts, at = {}, 0
  for r = 0, n - 1 do
    texts[r + 1] = ffi.string(all + at, lengths[r])
    at = at + tonumber(lengths[r])
  end
  return texts
end

--- Calls f(...), which must not wait for other ranks; raises on every rank when it raises on one.
function ranks.together(f, ...)
  local ok, result = pcall(f, ...)
  if ranks.size() == 1 then
    if not ok then error(result, 0) end
  else
    check(C.lm_dist_agree_text(nil, ok and 0 or C.LM_EIO, not ok and tostring(result) or nil))
  end
  return result
end

local function finish(name, ok, ...)
  if ok then return ... end
  local message = ...
  if type(message) ~= 'string' then error(message, 0) end
  error(('%s%s: %s'):format(caller.position(), name, message), 0)
end

--- A public function f(path, opts): what f raises gets its name and the caller's line.
---@param name string
---@param f function
---@param wanted table?  the options there are (lumoe.options); nil: any
function ranks.public(name, f, wanted)
  return function(path, opts, ...)
    if type(path) ~= 'string' then options.raise(name, 'wants a path, not a %s', type(path)) end
    if wanted then options.check(name, opts, wanted) end
    return finish(name, pcall(f, path, opts, ...))
  end
end

return ranks
