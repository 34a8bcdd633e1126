--- Programs that are compared, each a process of its own, taking turns: whatever else the machine does falls
-- on all alike.
--
-- A program says something about itself in a line of JSON, then waits. Lines on its standard input:
--   N          do N steps; answers { ms = { .. }, .. }: further lists hold parts of each step's ms, or what else
--              it measured of it, and further numbers (rss, loss) stand for all
--   job FILE   take another job (peers/serve.py; ours, programs/serve.lua, has one for life); answers about it
--   drop       let go of the job and its memory
--   end        no more
-- An answer { error = '..' } is for what a program cannot do; it lives on.
local json = require 'cjson'

local turns = {}

local SLOW = 10000 -- ms: a step that takes longer is not asked for again
local LONG = 1000 -- ms: so many steps are not done twice to warm up
local SHORT = 300 -- ms: before steps that take less, one is not counted

function turns.quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

function turns.median(list)
  local sorted = { unpack(list) }
  table.sort(sorted)
  local n = #sorted
  return n % 2 == 1 and sorted[(n + 1) / 2] or (sorted[n / 2] + sorted[n / 2 + 1]) / 2
end

-- ---- one program ---------------------------------------------------------------------------

---@class Program
---@field about table  what it said of itself, or of its job
local Program = {}
Program.__index = Program

--- command: a shell's, whose program speaks as above.
function turns.start(name, command)
  local pipe = os.tmpname()
  os.remove(pipe)
  assert(os.execute('mkfifo ' .. turns.quote(pipe)) == 0)
  local self = setmetatable({ name = name }, Program)
  self.output = io.popen(('exec %s < %s'):format(command, turns.quote(pipe)))
  self.input = assert(io.open(pipe, 'w'))
  os.remove(pipe)
  self.about = self:read()
  return self
end

function Program:read()
  local line = self.output:read '*l'
  if not line then
    self.ended = true
    error(self.name .. ' ended early; what it printed is above, or in the log of the peers', 0)
  end
  local ok, answer = pcall(json.decode, line)
  if not ok then error(('%s said %q, which is no JSON'):format(self.name, line), 0) end
  if answer.error then error(self.name .. ': ' .. answer.error, 0) end
  return answer
end

function Program:ask(line)
  if self.ended then error(self.name .. ' has ended', 0) end
  self.input:write(line, '\n')
  self.input:flush()
  return self:read()
end

function Program:take(file) self.about = self:ask('job ' .. file) end

function Program:turn(steps)
  self.last = self:ask(steps)
  return self.last.ms
end

function Program:close()
  if not self.ended then self.input:write 'end\n' end
  self.input:close()
  self.output:close()
  self.ended = true
end

-- ---- turns ---------------------------------------------------------------------------------

-- The lists of an answer, each as means over `cycle` steps in a row, at the end of those so far.
local function collect(samples, answer, cycle)
  for key, list in pairs(answer) do
    if type(list) == 'table' then
      samples[key] = samples[key] or {}
      for first = 1, #list, cycle do
        local sum = 0
        for i = first, first + cycle - 1 do sum = sum + list[i] end
        table.insert(samples[key], sum / cycle)
      end
    end
  end
end

--- Turns of each program, one after the other, in rounds. Returns for each program the medians of what it
-- measured (ms, ..), with the numbers of its last answer.
---@param opts table  rounds; seconds: about what a turn takes; cycle = 1: steps that count as one, their mean (a round
--  through batches that differ); quick: one turn to warm up, not two
function turns.alternate(programs, opts)
  local cycle, all = opts.cycle or 1, {}

  -- A turn, and what the next one will be.
  local function turn(i, steps)
    local each = turns.median(programs[i]:turn(steps))
    all[i].each, all[i].short = each, each < SHORT
    all[i].steps = math.max(1, math.min(50, math.floor(opts.seconds * 1e3 / each / cycle))) * cycle
  end

  for i, program in ipairs(programs) do
    all[i] = { samples = {} }
    turn(i, cycle)
    if all[i].each * cycle > SLOW then
      collect(all[i].samples, program.last, cycle) -- kernels are made, pools filled: it counts all the same
      all[i].done = true
    elseif not opts.quick and all[i].each * cycle < LONG then
      turn(i, cycle)
    end
  end
  for _ = 1, opts.rounds do
    for i, program in ipairs(programs) do
      if not all[i].done then
        if all[i].short then program:turn(1) end
        turn(i, all[i].steps)
        collect(all[i].samples, program.last, cycle)
      end
    end
  end
  local results = {}
  for i, program in ipairs(programs) do
    results[i] = {}
    for key, list in pairs(all[i].samples) do results[i][key] = turns.median(list) end
    for key, value in pairs(program.last) do
      if type(value) == 'number' then results[i][key] = value end
    end
    results[i].samples = #all[i].samples.ms
  end
  return results
end

--- A job as a file of JSON; returns its name.
function turns.write(job)
  local name = os.tmpname()
  local file = assert(io.open(name, 'w'))
  file:write(json.encode(job))
  file:close()
  return name
end

return turns
