--- `status.check` for a collective that was given memory of Lua's: FFI arrays, strings.
--
-- Of one that failed, another rank may still read what was sent, and MPI may still write what has half arrived. The
-- runtime keeps its own memory until neither can happen (runtime/pin.c); Lua's would go with the next collection,
-- and large arrays go back to the system.
local C = require 'lumoe.ffi'
local status = require 'lumoe.status'

local kept -- a list from the last on: { the one before, memory... }

--- st: what C returned, of the memory that follows. Raises where st is negative.
---@param st integer
return function(st, ...)
  if st < 0 then
    kept = { kept, ... }
    status.raise(st)
  elseif kept and C.lm_memory_pins() == 0 then kept = nil end
end
