--- save_loop.lua DIR FIRST: saves checkpoints of one step after the other, until killed. In that of step n every
-- number is n, so that whoever loads it can tell whether it is whole. Prints its process id, then "saved" once.
local lumoe = require 'lumoe'
local unistd = require 'posix.unistd'

local dir, step = arg[1], tonumber(arg[2])
local model = lumoe.nn.Linear { 512, 512 }
local optimizer = lumoe.optim.AdamW(model:named_parameters(), { lr = 0 })
print(unistd.getpid())
io.stdout:flush()
while true do
  for _, t in pairs(model:state()) do t:detach():fill_(step) end
  for _, t in pairs(optimizer:tensors()) do t:fill_(step) end
  optimizer.steps = step
  lumoe.checkpoint.save(dir, { model = model, optimizer = optimizer, step = step, extra = { step = step }, keep = 2 })
  if step == tonumber(arg[2]) then
    print 'saved'
    io.stdout:flush()
  end
  step = step + 1
end
