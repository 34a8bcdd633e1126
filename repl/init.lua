--- The prompt: what `lumoe` opens when it is given no script, and after one with -i.
-- It reads a chunk, runs it, shows its values, and goes on whatever happens. Lua itself is unchanged; the
-- prompt only sets the globals `_`, `help`, and Lumoe's modules by their names.
local evaluate = require 'repl.evaluate'
local pretty = require 'repl.print'

local repl = {}

local PROMPT, CONTINUATION = '> ', '>> '
local NEVER = 2 ^ 30 -- times Ctrl-C

---@class lumoe.repl.Terminal
---@field read fun(prompt: string): string?, string?   a line; nil at the end; nil, 'interrupted'
---@field remember fun(entry: string)                   adds to the history
---@field run fun(f: function, handler: function): integer, boolean, any   see evaluate.run
---@field columns fun(): integer?

-- ---- Globals of the prompt ----

local MODULES = { { 'lumoe', 'lumoe' }, { 'nn', 'lumoe.nn' }, { 'moe', 'lumoe.moe' }, { 'dist', 'lumoe.dist' } }

local function load_modules()
  for _, entry in ipairs(MODULES) do
    local name, module = entry[1], entry[2]
    if rawget(_G, name) == nil then
      local ok, value = pcall(require, module)
      if ok then
        rawset(_G, name, value)
      elseif not value:find("module '" .. module .. "' not found", 1, true) then
        io.stderr:write(('%s could not be loaded: %s\n'):format(module, value))
      end
    end
  end
  if rawget(_G, 'help') == nil then rawset(_G, 'help', require('repl.help').help) end
end

-- ---- The banner ----

local function first_match(path, pattern)
  local file = io.open(path)
  local text = file and file:read '*a'
  if file then file:close() end
  return text and text:match(pattern)
end

local function allowed_cpus() -- "0-3,8" -> 5
  local list, count = first_match('/proc/self/status', 'Cpus_allowed_list:%s*(%S+)') or '0', 0
  for from, to in list:gmatch '(%d+)%-?(%d*)' do
    count = count + (tonumber(to) or tonumber(from)) - tonumber(from) + 1
  end
  return count
end

--- `Lumoe 0.1.0 (LuaJIT 2.1.0-beta3), 15.6 GiB of memory, 2 threads`
function repl.banner()
  local ok, host = pcall(require, 'lumoe.host')
  local version = ok and host.version and ' ' .. host.version or ''
  local kib = tonumber(first_match('/proc/meminfo', 'MemTotal:%s*(%d+)'))
  local memory = kib and ('%.1f GiB of memory, '):format(kib / 2 ^ 20) or ''
  local lumoe = rawget(_G, 'lumoe')
  local threads = lumoe and lumoe.threads() or tonumber((os.getenv('OMP_NUM_THREADS') or ''):match '^%d+') or allowed_cpus()
  return ('Lumoe%s (%s), %s%d thread%s\nhelp() explains the prompt; Ctrl-D ends it.'):format(
    version, jit.version, memory, threads, threads == 1 and '' or 's')
end

-- ---- One chunk ----

local function report(result)
  io.stdout:flush()
  if result.interrupted then -- behind the terminal's ^C; where in what was typed, if it was typed
    local place, typed = result.message:match '^([^\n]*): interrupted', result.message:match '\n%s*(stdin:%d+)'
    io.stderr:write('\ninterrupted at ', typed or place or '?', '\n')
  else
    io.stderr:write(result.message, '\n')
  end
end

--- Runs a compiled chunk and shows its values.
---@return boolean ok
function repl.execute(chunk, terminal)
  local result = evaluate.run(chunk, terminal.run)
  if result.ok and result.n > 0 then
    if result[1] ~= nil then rawset(_G, '_', result[1]) end
    local width = terminal.columns and terminal.columns() or 80
    result = evaluate.run(function() -- a __tostring can fail, and take long
      for i = 1, result.n do print(pretty.show(result[i], { width = width })) end
    end, terminal.run)
  end
  if not result.ok then report(result) end
  io.stdout:flush()
  return result.ok
end

-- ---- The loop ----

--- Reads until a chunk is complete.
---@return function? chunk    nil at the end of the input
---@return string? message    why there is none this time
---@return string? source
local function read_chunk(terminal)
  local source
  while true do
    local line, interrupted = terminal.read(source and CONTINUATION or PROMPT)
    if line == nil and not interrupted then
      if source then return nil, select(2, evaluate.compile(source)), source end
      return nil
    end
    if interrupted then
      source = nil
    elseif source or line:find '%S' then
      source = source and source .. '\n' .. line or line
      local chunk, message, more = evaluate.compile(source)
      if chunk or not more then return chunk, message, source end
    end
  end
end

--- Reads and runs chunks to the end of the input.
---@param terminal lumoe.repl.Terminal
---@return boolean ok  whether all went well
function repl.loop(terminal)
  local ok = true
  while true do
    local chunk, message, source = read_chunk(terminal)
    if source and terminal.remember then terminal.remember(source) end
    if chunk then
      ok = repl.execute(chunk, terminal) and ok
    elseif message then
      io.stderr:write(message, '\n')
      ok = false
    else
      return ok
    end
  end
end

-- ---- Terminals ----

--- A line editor with history and completion.
local function editor()
  local readline = require 'lumoe_readline'
  local host = require 'lumoe.host'
  local history = require 'repl.history'
  local complete = require 'repl.complete'

  local path, newest = history.path(), nil
  for _, entry in ipairs(path and history.load(path) or {}) do
    readline.remember(entry)
    newest = entry
  end
  readline.complete_with(complete.complete)
  host.interrupts(NEVER, NEVER + 1) -- between chunks
  return {
    read = readline.read,
    run = host.run,
    columns = readline.columns,
    remember = function(entry)
      if entry == newest then return end
      newest = entry
      readline.remember(entry)
      if path then
        local ok, message = history.append(path, entry)
        if not ok then
          io.stderr:write(('the history is not kept: %s\n'):format(message))
          path = nil
        end
      end
    end,
  }
end

--- Lines of a file or a pipe: no prompt, no history.
local function plain_input()
  return { read = function() return io.read '*l' end }
end

local function is_terminal()
  local ffi = require 'ffi'
  ffi.cdef 'int isatty(int fd);'
  return ffi.C.isatty(0) == 1
end

--- Opens the prompt on standard input and returns at its end. On a terminal, errors are the user's to see and no
-- failure; lines from a file or a pipe are all run, and one that failed makes the exit code 1.
function repl.run()
  load_modules()
  if not is_terminal() then
    if not repl.loop(plain_input()) then os.exit(1) end
    return
  end
  print(repl.banner())
  repl.loop(editor())
  print()
end

return repl
