--- A program of ours that takes turns (the protocol is in tests/bench/turns.lua). Its argument: a job, a file of JSON.
-- Under mpirun all ranks take the job and do the steps; rank 0 speaks.
local json = require 'cjson'
local lumoe = require 'lumoe'
local clock = require('lumoe.log.terminal').clock
local dist = lumoe.dist

-- The most memory this process ever had, MiB.
local function peak_rss()
  for line in io.lines '/proc/self/status' do
    local kb = line:match '^VmHWM:%s*(%d+)'
    if kb then return tonumber(kb) / 1024 end
  end
end

--- make(job) -> step, about. step(lap) does one step and may return a table of numbers; lap(name) names what was done
-- since the last one, and its ms become a list of the answer.
local function serve(make)
  local job = json.decode(assert(io.open(arg[1])):read '*a')
  lumoe.threads(job.threads)
  lumoe.manual_seed(1)
  math.randomseed(1)
  local step, about = make(job)
  local lead = dist.rank() == 0

  local function say(record)
    if not lead then return end
    io.stdout:write(json.encode(record), '\n')
    io.stdout:flush()
  end

  -- Steps to do; nil: no more. The launcher gives its standard input to rank 0 alone.
  local function asked()
    local line = lead and io.read() or 'end'
    local n = dist.reduce_number(lead and tonumber(line) or -1, 'max')
    return n >= 0 and n or nil
  end

  say(about)
  for n in asked do
    local answer, more, last = { ms = {} }, nil, nil
    local function lap(name)
      local now = clock()
      answer[name] = answer[name] or {}
      table.insert(answer[name], (now - last) * 1e3)
      last = now
    end
    local waited, whole = dist.waited(), clock()
    for i = 1, n do
      local begun = clock()
      last = begun
      more = step(lap) or more
      answer.ms[i] = (clock() - begun) * 1e3
    end
    answer.waited = (dist.waited() - waited) / (clock() - whole)
    answer.rss, answer.tensors = peak_rss(), lumoe.memory().peak.total / 2 ^ 20
    for key, value in pairs(more or {}) do answer[key] = value end
    say(answer)
  end
end

return serve
