-- slow: kills and starts the program ten times
local lfs = require 'lfs'
local signal = require 'posix.signal'
local time = require 'posix.time'
local lumoe = require 'lumoe'
local checkpoint = require 'lumoe.checkpoint'
local folder = require 'tests.lua.checkpoint.folder'

-- Loads the newest checkpoint, checks every number of it, returns its step.
local function check(dir)
  local model = lumoe.nn.Linear { 512, 512 }
  local optimizer = lumoe.optim.AdamW(model:named_parameters(), { lr = 0 })
  local path, step = checkpoint.latest(dir)
  assert(path, step)
  local saved = checkpoint.load(path, { model = model, optimizer = optimizer })
  assert.equal(step, saved.step)
  assert.equal(step, saved.extra.step)
  assert.equal(step, optimizer.steps)
  for _, tensors in ipairs { model:state(), optimizer:tensors() } do
    for name, t in pairs(tensors) do
      assert.equal(step, t:min():item(), name)
      assert.equal(step, t:max():item(), name)
    end
  end
  return step
end

local function parts(dir)
  local n = 0
  for entry in lfs.dir(dir) do
    if entry:match '%.part$' then n = n + 1 end
  end
  return n
end

local function pause(ms) time.nanosleep { tv_sec = 0, tv_nsec = ms * 1000000 } end

describe('a run that is killed with -9 at any moment', function()
  it('leaves a whole checkpoint, which the next run goes on from', function()
    folder.with(function(dir)
      math.randomseed(7)
      local step, in_the_middle = 0, 0
      for _ = 1, 10 do
        local run = io.popen(('OMP_NUM_THREADS=1 exec %s tests/lua/checkpoint/save_loop.lua %s %d')
          :format(os.getenv 'LUMOE' or 'build/bin/lumoe', dir, step + 1))
        local pid = assert(run:read '*n')
        assert.equal('saved', run:read '*l' == '' and run:read '*l')
        -- From the moment that the next save has begun, however busy the machine is.
        for _ = 1, 20000 do
          if parts(dir) > 0 then break end
          pause(1)
        end
        pause(math.random(0, 100))
        signal.kill(pid, signal.SIGKILL)
        run:close()
        in_the_middle = in_the_middle + parts(dir)
        local now = check(dir)
        assert.is_true(now > step)
        step = now
      end
      assert.is_true(in_the_middle > 0, 'no kill met a save: this spec proved nothing')
      -- What the last kill left goes when the next checkpoint is saved.
      local model = lumoe.nn.Linear { 2, 2 }
      checkpoint.save(dir, { model = model, step = step + 1, keep = 1 })
      assert.equal(0, parts(dir))
      assert.equal(dir .. ('/checkpoint-%d'):format(step + 1), (checkpoint.latest(dir)))
    end)
  end)
end)
