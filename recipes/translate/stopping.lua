--- Ctrl-C, or a scheduler's SIGTERM, in a recipe: the first asks it to finish its step and save, the second raises as usual.
local dist = require('lumoe').dist
local ours, host = pcall(require, 'lumoe.host') -- the program's own; a plain luajit has none

local stopping = {}

function stopping.watch()
  if ours then host.interrupts(2, 3) end
end

--- Whether any rank was asked to stop. Collective, so that all stop at the same step.
function stopping.asked()
  local count = ours and host.interrupted() or 0
  return dist.reduce_number(count, 'max') > 0
end

function stopping.ignore()
  if ours then host.interrupts(1, 3) end
end

return stopping
