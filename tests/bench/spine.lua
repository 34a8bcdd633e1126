--- The spine's own line of the benchmark: a training step of the recipe's model beside PyTorch's. Takes run.lua's options.
local path = require 'pl.path'

local run = path.join(path.dirname(arg[0]), 'run.lua')
local words = { [-1] = arg[-1], [0] = run, '--group', 'models', '--model', 'recipe' }
for _, word in ipairs(arg) do words[#words + 1] = word end
arg = words -- luacheck: ignore 121
dofile(run)
