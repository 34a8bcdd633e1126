--- Kills one rank of a training at random moments, goes on from the last checkpoint, and again; in the end it must be
-- the run that nobody killed.
--
--   ./lumoe tests/recipes/kill_ranks.lua [--kills 20] [--ranks 2] [--seed 1]
--
-- Each time the job has to end within 5 s, with no process left, and mpirun has to say which rank died of what.
local argparse = require 'argparse'
local utils = require 'pl.utils'
local path = require 'pl.path'
local run = require 'tests.recipes.run'
local clock = require('lumoe.log.terminal').clock

run.lumoe = arg[-1]
local p = argparse('lumoe tests/recipes/kill_ranks.lua', 'Kills ranks of a training at random moments.')
p:option('--kills', 'How often'):convert(tonumber):default '20'
p:option('--ranks', 'Ranks, over which the experts are spread'):convert(tonumber):default '2'
p:option('--seed', 'Of the moments'):convert(tonumber):default '1'
local opts = p:parse(arg)
math.randomseed(opts.seed)

local root = run.workplace()
local options = { steps = 1e6, ep = opts.ranks, ['checkpoint-minutes'] = 1e-4 } -- a checkpoint at nearly every step
local how = { ranks = opts.ranks }

local function sleep(seconds) os.execute(('sleep %.3f'):format(seconds)) end

local function steps_written()
  local file = root .. '/out/metrics.jsonl'
  if not path.exists(file) then return 0 end
  return select(2, utils.readfile(file):gsub('\n', ''))
end

local function children(process)
  local list = {}
  for child in (utils.readfile(('/proc/%d/task/%d/children'):format(process, process)) or ''):gmatch '%d+' do
    list[#list + 1] = tonumber(child)
  end
  return list
end

-- Starts the training in the background: mpirun's process.
local function start()
  local command = run.translate_command(root, 'out', options, how):gsub('mpirun', 'exec mpirun', 1)
  local pipe = io.popen(('sh -c %s > %s/said 2>&1 & echo $!'):format(utils.quote_arg('export ' .. command:gsub(' ', '; ', 1)), root))
  local process = pipe:read '*n'
  pipe:close()
  return process
end

local faults = 0
local function fault(...)
  faults = faults + 1
  print('  WRONG: ' .. (...):format(select(2, ...)))
end

local function alive(process) return path.exists(('/proc/%d/stat'):format(process)) and true or false end

print(('%5s %5s %9s  %s'):format('step', 'rank', 'ended, s', 'mpirun said'))
for _ = 1, opts.kills do
  local before, process = steps_written(), start()
  local wait = math.random(1, 12)
  local given_up = clock() + 60
  while steps_written() < before + wait and alive(process) and clock() < given_up do sleep(0.02) end
  sleep(math.random() * 0.2)
  local ranks = children(process)
  local victim = math.random(#ranks)
  local begun = clock()
  os.execute('kill -9 ' .. ranks[victim])
  while alive(process) and clock() < begun + 30 do sleep(0.02) end
  local seconds = clock() - begun
  local said = utils.readfile(root .. '/said') or ''
  local line = said:match '[^\n]*exited on signal[^\n]*' or said:match '[^\n]*\n?$'
  print(('%5d %5d %9.2f  %s'):format(steps_written(), victim - 1, seconds, line))
  if seconds > 5 then fault('the job took %.1f s to end', seconds) end
  if not line:match 'signal 9' then fault('the message names no signal') end
  local gone_by = clock() + 1 -- each was told to end; on a busy machine that may take a moment
  for _, rank in ipairs(ranks) do
    while alive(rank) and clock() < gone_by do sleep(0.02) end
    if alive(rank) then fault('process %d is still there', rank) end
  end
  options.resume = true
end

local last = steps_written() + 5
options.steps = last
local records = run.trained(root, 'out', options, how)
local whole = run.trained(root, 'whole', { steps = last })
local same, why = pcall(run.same, whole, records, 1e-4)
if not same then fault('%s', why) end
print(('%d kills, %d steps: %s'):format(opts.kills, last, faults == 0 and 'the unbroken run of one process, to 1e-4' or faults .. ' wrong'))
run.remove(root)
os.exit(faults == 0 and 0 or 1, true)
