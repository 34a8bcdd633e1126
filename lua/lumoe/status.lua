--- Turns a negative status of the C runtime into a Lua error at the caller's line.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local caller = require 'lumoe.caller'
local ours, host = pcall(require, 'lumoe.host') -- the program's own; a plain luajit has none
if not ours then host = {} end

local status = {}

--- Raises the sentence of the last failure in C, whose status was `st`.
function status.raise(st)
  local sentence = ffi.string(C.lm_last_error())
  if st == C.LM_EUSER then status.refuse('%s', sentence) end
  error(caller.position() .. sentence, 0)
end

--- Raises a sentence about an argument, at the caller's line: checked in Lua, before C.
function status.argument(format, ...)
  error(caller.position() .. format:format(...), 0)
end

--- Raises if `st`, what a C function returned, is negative.
---@param st integer
function status.check(st) -- tiny, so that traces inline it
  if st < 0 then status.raise(st) end
end

--- Raises a sentence for whoever runs the program: what they asked for cannot be (no such folder, no apt here),
-- and nothing in the program is wrong. It names no line, and where it ends a script the host shows it alone,
-- without a traceback (runtime/host/main.c).
function status.refuse(format, ...)
  host.refusal = format:format(...)
  error(host.refusal, 0)
end

--- Whether an error message is that of the last refusal.
function status.is_refusal(message) return message ~= nil and message == host.refusal end

--- debug.traceback, for xpcall; a refusal has none.
function status.traceback(message)
  return status.is_refusal(message) and message or debug.traceback(message, 2)
end

return status
