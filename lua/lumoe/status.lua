--- Turns a negative status of the C runtime into a Lua error at the caller's line.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local caller = require 'lumoe.caller'

local status = {}

--- Raises the sentence of the last failure in C.
function status.raise()
  error(caller.position() .. ffi.string(C.lm_last_error()), 0)
end

--- Raises a sentence about an argument, at the caller's line: checked in Lua, before C.
function status.argument(format, ...)
  error(caller.position() .. format:format(...), 0)
end

--- Raises if `st`, what a C function returned, is negative.
---@param st integer
function status.check(st) -- tiny, so that traces inline it
  if st < 0 then status.raise() end
end

return status
