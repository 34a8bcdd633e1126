--- The C runtime as Lua sees it: liblumoe.so, with its declarations read.
-- Both lie where the build and the install alike put them, relative to this file:
--   share/lumoe/lua/lumoe/ffi.lua   share/lumoe/cdef.h   lib/liblumoe.so
local ffi = require 'ffi'

local share = debug.getinfo(1, 'S').source:match '^@(.*)/lua/lumoe/ffi%.lua$'
assert(share, 'lumoe.ffi: this file must be loaded as .../share/lumoe/lua/lumoe/ffi.lua')

local file, message = io.open(share .. '/cdef.h')
if not file then
  error('lumoe.ffi: ' .. message .. '; run `./lumoe` in the source tree to build it', 0)
end
ffi.cdef(file:read '*a')
file:close()

local C = ffi.load(share .. '/../../lib/liblumoe.so') -- package.loaded anchors it

-- A layer of experts is more than LuaJIT's limits of one trace have in mind; and it counts calls in tail position,
-- of which we have many, as turns of an unrolled loop.
require('jit.opt').start('loopunroll=60', 'maxrecord=16000', 'maxsnap=2000', 'maxirconst=4000', 'maxmcode=8192')

-- Ctrl-C also frees a rank that waits for the others. (Our program has this module; a plain
-- luajit has not, and then dies of Ctrl-C anyway.)
local ours, host = pcall(require, 'lumoe.host')
if ours then
  host.interrupt_wakes(tonumber(ffi.cast('intptr_t', C.lm_dist_interrupt)))
  if C.lm_dist_debug() == 1 then -- errors name lines, which compiled code does not keep
    jit.off()
    jit.flush()
    C.lm_dist_where(ffi.cast('int (*)(char *, int)', host.where()))
  end
end

return C
