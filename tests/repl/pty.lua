--- A program behind a pseudo-terminal, driven as a person would: type, wait for what must appear.
-- Waits are on text, never on time; a wait that fails shows the screen.
local posix = require 'posix'

local pty = {}
pty.__index = pty

local TIMEOUT = 10 -- seconds, for a busy machine; nothing waits that long when it works

local function now()
  local seconds, nanoseconds = posix.clock_gettime('monotonic')
  return seconds + nanoseconds * 1e-9
end

--- Starts `argv` on a terminal of its own.
---@param argv string[]
---@param env table<string, string>
function pty.start(argv, env)
  local master = assert(posix.openpt(posix.O_RDWR + posix.O_NOCTTY))
  assert(posix.grantpt(master))
  assert(posix.unlockpt(master))
  local name = assert(posix.ptsname(master))
  local pid = assert(posix.fork())
  if pid == 0 then
    posix.setpid('s')
    local terminal = posix.open(name, posix.O_RDWR) -- the first one opened becomes the controlling terminal
    for fd = 0, 2 do posix.dup2(terminal, fd) end
    if terminal > 2 then posix.close(terminal) end
    posix.close(master)
    for key, value in pairs(env) do posix.setenv(key, value) end
    posix.execp(argv[1], { unpack(argv, 2) })
    posix._exit(127)
  end
  return setmetatable({ master = master, pid = pid, screen = '', seen = 0 }, pty)
end

local function plain(text) -- without the terminal's control sequences
  return (text:gsub('\27%[[%d;?]*%a', ''):gsub('\27[=>]', ''):gsub('[\r\7]', ''))
end

--- Types text; control characters are keys.
function pty:type(text)
  assert(posix.write(self.master, text) == #text)
end

--- Types a line and waits for the next prompt.
---@return string output  what came between the echo and the prompt
function pty:enter(line)
  self:type(line .. '\n')
  return self:wait('\n> ')
end

local function read_more(self, deadline)
  local ready = posix.rpoll(self.master, math.max(0, math.floor((deadline - now()) * 1000)))
  local bytes = ready == 1 and posix.read(self.master, 4096)
  if bytes and #bytes > 0 then
    self.raw = (self.raw or '') .. bytes
    self.screen = plain(self.raw)
    return true
  end
  return false
end

--- Waits for `text` after what earlier waits have consumed.
---@return string before  what stood before it
---@return number seconds
function pty:wait(text)
  local began = now()
  while true do
    local from, to = self.screen:find(text, self.seen + 1, true)
    if from then
      local before = self.screen:sub(self.seen + 1, from - 1)
      self.seen = to
      return before, now() - began
    end
    if not read_more(self, began + TIMEOUT) then
      error(('no %q on the terminal, only:\n%s'):format(text, self.screen:sub(self.seen + 1)), 2)
    end
  end
end

--- Waits for the program's end.
---@return string how   'exited' or 'killed'
---@return integer code
function pty:finish()
  local deadline = now() + TIMEOUT
  repeat until not read_more(self, deadline)
  posix.close(self.master)
  local pid, how, code = posix.wait(self.pid)
  self.pid = nil
  assert(pid, how)
  return how, code
end

--- Ends a program that a failed test has left.
function pty:close()
  if not self.pid then return end
  posix.kill(self.pid, posix.SIGKILL)
  posix.wait(self.pid)
  posix.close(self.master)
  self.pid = nil
end

return pty
