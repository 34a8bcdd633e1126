--- Turns a negative status of the C runtime into a Lua error at the caller's line.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'

local status = {}

local function where() -- first frame outside this package; a tail call leaves no frame behind
  for level = 3, 64 do
    local info = debug.getinfo(level, 'Sl')
    if not info then break end
    if info.currentline > 0 and not info.source:find('/lua/lumoe/', 1, true) then
      return ('%s:%d: '):format(info.short_src, info.currentline)
    end
  end
  return ''
end

--- Raises the sentence of the last failure in C.
function status.raise()
  error(where() .. ffi.string(C.lm_last_error()), 0)
end

--- Raises a sentence about an argument, at the caller's line: checked in Lua, before C.
function status.argument(format, ...)
  error(where() .. format:format(...), 0)
end

--- Raises if `st`, what a C function returned, is negative.
---@param st integer
function status.check(st) -- tiny, so that traces inline it
  if st < 0 then status.raise() end
end

return status
