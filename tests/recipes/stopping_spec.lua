local path = require 'pl.path'
local run = require 'tests.recipes.run'
local utils = require 'pl.utils'

-- Starts a training in the background; returns its process and a function that waits for its end,
-- which gives how it ended, `exited 0`, and what it said.
local function start(root, out, options, how)
  local said = ('%s/%s.said'):format(root, out)
  local command = run.translate_command(root, out, options, how)
  -- `exec` makes the shell's number that of lumoe (or mpirun); a script's background job ignores SIGINT otherwise.
  local starter = ('%s/start-%s.sh'):format(root, out)
  utils.writefile(starter, ('exec env %s > %s 2>&1\n'):format(command, said))
  local pipe = io.popen(('LUMOE_STARTER=%s %s -e %s'):format(starter, run.lumoe, utils.quote_arg [[
    local signal, unistd, wait = require 'posix.signal', require 'posix.unistd', require 'posix.sys.wait'
    local child = unistd.fork()
    if child == 0 then
      signal.signal(signal.SIGINT, signal.SIG_DFL)
      unistd.execp('sh', { os.getenv 'LUMOE_STARTER' })
    end
    print(child)
    io.stdout:flush()
    local _, ending, code = wait.wait(child)
    print(ending, code)
  ]]))
  local process = pipe:read '*n'
  return process, function()
    local ending = pipe:read('*a'):match '%a+%s+%d+':gsub('%s+', ' ')
    pipe:close()
    return ending, utils.readfile(said)
  end
end

-- Waits until `steps` steps are written down.
local function wait_for_steps(root, out, steps)
  local file = ('%s/%s/metrics.jsonl'):format(root, out)
  for _ = 1, 600 do
    if path.exists(file) then
      local _, lines = utils.readfile(file):gsub('\n', '')
      if lines >= steps then return end
    end
    os.execute 'sleep 0.05'
  end
  error('no steps after half a minute: ' .. (utils.readfile(('%s/%s.said'):format(root, out)) or ''))
end

local function kill(signal, process) os.execute(('kill -%s %d'):format(signal, process)) end

describe('a training that is stopped', function()
  local root, baseline
  local STEPS = 120
  setup(function()
    root = run.workplace()
    baseline = run.trained(root, 'alone', { steps = STEPS })
  end)
  teardown(function() run.remove(root) end)

  local LONG = { steps = 1e6, ['checkpoint-minutes'] = 1e-4 } -- a checkpoint at nearly every step

  -- The first records of a run, compared as far as both go.
  local function check(out, least)
    local records = run.records(root, out)
    assert.is_true(#records >= least)
    local n = math.min(#records, STEPS)
    run.same({ unpack(baseline, 1, n) }, { unpack(records, 1, n) }, 1e-4)
    for step, record in ipairs(records) do assert.equal(step, record.step) end
  end

  -- Sends the signal to a training after so many steps, which must then save and tell how to go on, with `hint`. Returns
  -- the step at which it stopped, and what it said.
  local function stop(signal, out, steps, hint, options, how)
    local process, ended = start(root, out, options, how)
    wait_for_steps(root, out, steps)
    kill(signal, process)
    local ending, said = ended()
    assert.equal('exited 0', ending, said)
    local step = tonumber(said:match('stopped at step (%d+); go on with: lumoe ' .. hint))
    assert.is_number(step, said)
    assert.is_true(path.exists(('%s/%s/checkpoint-%d/index.json'):format(root, out, step)) and true or false)
    return step, said
  end

  it('by a scheduler finishes its step and saves', function() stop('TERM', 'terminated', 5, 'recipes/translate.lua ', LONG) end)

  it('by Ctrl-C finishes its step, saves, and tells how to go on', function()
    local step, said = stop('INT', 'interrupted', 20, 'recipes/translate.lua ', LONG)
    assert.equal(step, #run.records(root, 'interrupted'))
    -- The command that it printed, but for the end and the program's name.
    local command = said:match 'go on with: lumoe (.-)\n':gsub('%-%-steps=%d+', '--steps=' .. step + 10)
    local again, _, errors = run.shell(('OMP_NUM_THREADS=1 %s %s'):format(run.lumoe, command))
    assert.equal(0, again, errors)
    assert.equal(step + 10, #run.records(root, 'interrupted'))
    check('interrupted', 30)
  end)

  it('by Ctrl-C on several ranks stops all at one step', function()
    -- As mpirun passes signals on: SIGUSR1 is the one that it forwards.
    local step = stop('USR1', 'ranks', 10, '%-np 2 ', { steps = 1e6, ep = 2 }, { ranks = 2 })
    run.trained(root, 'ranks', { steps = step + 5, resume = true })
    check('ranks', 15)
  end)

  -- Where ./lumoe runs the program under test.
  if path.abspath(run.lumoe) == path.abspath 'build/bin/lumoe' then
    it('by a scheduler on several ranks finishes its step and saves', function()
      stop('TERM', 'terminated-ranks', 10, '%-np 2 ', { steps = 1e6, ep = 2 }, { ranks = 2, wrapper = true })
      check('terminated-ranks', 10)
    end)
  end

  for _, case in ipairs { { 'alone', 1, 1, 1 }, { 'on two ranks', 2, 2, 1 }, { 'and goes on with two', 1, 1, 2 } } do
    local name, ranks, ep, ranks_after = unpack(case)
    it('by kill -9 at any moment goes on from its last checkpoint: ' .. name, function()
      local out = 'killed-' .. ranks .. ranks_after
      local options = { steps = 1e6, ep = ep, ['checkpoint-minutes'] = 1e-4 }
      local process, ended = start(root, out, options, { ranks = ranks })
      local steps = 15
      for _ = 1, 3 do
        wait_for_steps(root, out, steps)
        kill('KILL', process)
        ended()
        if ranks > 1 then os.execute 'sleep 1' end -- mpirun's children notice
        local records = run.records(root, out)
        steps = #records + 10
        options.resume = true
        process, ended = start(root, out, options, { ranks = ranks })
      end
      wait_for_steps(root, out, steps)
      kill('KILL', process)
      ended()
      if ranks > 1 then os.execute 'sleep 1' end
      local last = #run.records(root, out) + 5
      run.trained(root, out, { steps = last, resume = true, ep = ranks_after }, { ranks = ranks_after })
      assert.equal(last, #run.records(root, out))
      check(out, 40)
    end)
  end

  it('has lost nothing when the last checkpoint is cut off', function()
    run.trained(root, 'torn', { steps = 8, ['checkpoint-minutes'] = 0 })
    -- What a kill between writing and renaming leaves: a part without its name, records of later steps.
    os.execute(('cd %s/torn && mv checkpoint-8 checkpoint-8.part && rm checkpoint-8.part/index.json'):format(root))
    os.execute(('printf \'{"step":9,"lo\' >> %s/torn/metrics.jsonl'):format(root))
    run.trained(root, 'torn', { steps = 30, resume = true })
    check('torn', 30)
  end)

  it('says which file is damaged', function()
    run.trained(root, 'damaged', { steps = 2 })
    os.execute(('truncate -s -100 %s/damaged/checkpoint-2/model-00001-of-00001.safetensors'):format(root))
    local code, _, errors = run.translate(root, 'damaged', { steps = 4, resume = true })
    assert.is_true(code ~= 0)
    assert.truthy(errors:find('damaged/checkpoint-2/model-00001-of-00001.safetensors', 1, true), errors)
  end)

  it('says when there is nothing to go on from, or another tokenizer', function()
    local code, _, errors = run.translate(root, 'empty', { resume = true })
    assert.is_true(code ~= 0)
    assert.matches('%-%-resume: .-/empty has no checkpoint', errors)
    run.trained(root, 'other', { steps = 2 })
    assert.equal(0, (run.translate(root, 'unused', { steps = 0, vocab = 510 })))
    os.execute(('cp %s/data/spm-510.model %s/data/spm-500.model'):format(root, root))
    code, _, errors = run.translate(root, 'other', { steps = 4, resume = true })
    assert.is_true(code ~= 0)
    assert.truthy(errors:find('another tokenizer', 1, true) or errors:find('--vocab 500, and now it is 510', 1, true), errors)
  end)
end)
