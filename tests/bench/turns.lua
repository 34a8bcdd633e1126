--- Programs that are compared, each a process of its own, taking turns: whatever else the machine does falls
-- on all alike.
--
-- A program makes its model and prints a line of JSON about it, then waits; it does as many steps as a line
-- on its standard input says (`end`: no more), and answers with a line of JSON: { ms = { .. }, loss, rss }.
local json = require 'cjson'

local turns = {}

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end
local function median(list)
  local sorted = { unpack(list) }
  table.sort(sorted)
  local n = #sorted
  return n % 2 == 1 and sorted[(n + 1) / 2] or (sorted[n / 2] + sorted[n / 2 + 1]) / 2
end

turns.quote, turns.median = quote, median

local Program = {}
Program.__index = Program

--- command: a shell's, whose program speaks as above.
function turns.start(name, command)
  local pipe = os.tmpname()
  os.remove(pipe)
  assert(os.execute('mkfifo ' .. quote(pipe)) == 0)
  local self = setmetatable({ name = name, ms = {}, tokens = {} }, Program)
  self.output = io.popen(('exec %s < %s'):format(command, quote(pipe)))
  self.input = assert(io.open(pipe, 'w'))
  os.remove(pipe)
  self.about = self:read()
  return self
end

function Program:read()
  local line = self.output:read '*l'
  if not line then error(self.name .. ' ended early; what it printed is above', 0) end
  return json.decode(line)
end

function Program:turn(steps)
  self.input:write(steps, '\n')
  self.input:flush()
  self.last = self:read()
  return self.last.ms
end

function Program:close()
  self.input:write 'end\n'
  self.input:close()
  self.output:close()
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
