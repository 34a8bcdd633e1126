--- Saving and loading as one act of all ranks: what one meets, all learn.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local caller = require 'lumoe.caller'
local dist = require 'lumoe.dist'
local options = require 'lumoe.options'

local ranks = {}

local function check(st)
  if st < 0 then error(ffi.string(C.lm_last_error()), 0) end
  return st
end

function ranks.rank() return check(C.lm_dist_rank()) end
function ranks.size() return check(C.lm_dist_world_size()) end

ranks.gather = dist.gather_texts

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
