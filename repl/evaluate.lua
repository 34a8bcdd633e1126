--- Text in, values out: the part of the prompt that knows no terminal.
-- A chunk is what was typed until it is complete; its locals end with it, as in lua.
local evaluate = {}

local CHUNK = '=stdin'
local HERE = debug.getinfo(1, 'S').short_src

-- `return f()` is a tail call, which would leave the line out of the traceback.
local PASS = 'return (function(...) return ... end)(%s\n)'

local function incomplete(message)
  return message:find "'<eof>'$" ~= nil
end

-- "unexpected symbol near '1'" says nothing about `1 + + 2`: then the fault is in the expression.
local function blames_first_token(message, source)
  local token = message:match("unexpected symbol near '(.*)'$")
  return token ~= nil and source:match('^%s*(.*)'):sub(1, #token) == token
end

--- Compiles a chunk: as an expression if it is one, else as statements.
---@param source string
---@return function? chunk
---@return string? message    why it does not compile
---@return boolean? more      true if it is only unfinished
function evaluate.compile(source)
  source = source:gsub('^%s*=', '', 1) -- `=x`, a habit from Lua 5.1
  -- The newline tells a string that was not closed from one that goes on.
  local expression, why_not_expression = loadstring('return ' .. source .. '\n', CHUNK)
  if expression then return loadstring(PASS:format(source), CHUNK) or expression end
  local statements, why = loadstring(source .. '\n', CHUNK)
  if statements then return statements end
  local more = incomplete(why) or incomplete(why_not_expression)
  if blames_first_token(why, source) and not blames_first_token(why_not_expression, source) then
    why = why_not_expression
  end
  return nil, why, more
end

-- The frames below the chunk are the prompt's own.
local function trim(traceback)
  local kept = {}
  for line in traceback:gmatch('[^\n]+') do
    if line:find(HERE, 1, true) then
      kept[#kept] = nil -- the pcall that called the chunk
      break
    end
    kept[#kept + 1] = line
  end
  if kept[#kept] == 'stack traceback:' then kept[#kept] = nil end
  return table.concat(kept, '\n')
end

local function on_error(message)
  if type(message) ~= 'string' then
    local metatable = debug.getmetatable(message)
    local has_text = type(metatable) == 'table' and rawget(metatable, '__tostring') or type(message) == 'number'
    if not has_text then
      message = ('(error object is a %s value)'):format(type(message))
    end
  end
  return trim(debug.traceback(tostring(message), 2))
end

--- Runs f like xpcall, where nothing can interrupt it. `require('lumoe.host').run` is the other way.
---@return integer interrupts, boolean ok, any ...
function evaluate.plain(f, handler)
  return 0, xpcall(f, handler)
end

local function result(interrupts, ok, ...)
  if ok then return { ok = true, n = select('#', ...), ... } end
  local message = tostring((...))
  if message == 'error in error handling' then message = 'stack overflow, or a failure while an error was told' end
  return { ok = false, message = message, interrupted = interrupts > 0 and message:match('^[^\n]*interrupted') ~= nil }
end

---@class lumoe.repl.Result
---@field ok boolean
---@field n integer?             how many values, in [1..n]
---@field message string?        with a traceback, the prompt's own frames left out
---@field interrupted boolean?   by Ctrl-C

--- Runs a compiled chunk; an error never passes.
---@param chunk function
---@param run fun(f: function, handler: function): integer, boolean, any  default evaluate.plain
---@return lumoe.repl.Result
function evaluate.run(chunk, run)
  return result((run or evaluate.plain)(chunk, on_error))
end

return evaluate
