--- Checks a table of named arguments: unknown names, missing ones and wrong types are errors of the caller.
local caller = require 'lumoe.caller'

local options = {}

--- Raises `who: …` at the line of whoever called the package.
---@param who string
---@param format string
function options.raise(who, format, ...) error(caller.position() .. who .. ': ' .. format:format(...), 0) end

local function known_names(wanted)
  local names = {}
  for name in pairs(wanted) do names[#names + 1] = name end
  table.sort(names)
  return table.concat(names, ', ')
end

--- Returns `opts` if it has all that is wanted and nothing else.
---@param who string     the function, for the message
---@param opts table
---@param wanted table<string, string>  name -> type as `type()` says it, or `any`; with a `?` behind it,
---  the option may be left out
---@return table opts
function options.check(who, opts, wanted)
  if type(opts) ~= 'table' then options.raise(who, 'wants a table of options, not a %s', type(opts)) end
  for name in pairs(opts) do
    if not wanted[name] then
      options.raise(who, "no option '%s'; there are: %s", tostring(name), known_names(wanted))
    end
  end
  for name, kind in pairs(wanted) do
    local plain, optional = kind:match '^(%a+)(%??)$'
    local value = opts[name]
    if value == nil and optional == '' then
      options.raise(who, "option '%s' (a %s) is missing", name, plain)
    end
    if value ~= nil and plain ~= 'any' and type(value) ~= plain then
      options.raise(who, "option '%s' must be a %s, not a %s", name, plain, type(value))
    end
  end
  return opts
end

--- Raises unless it is a number.
---@param who string
---@param name string
function options.number(who, name, value)
  if type(value) ~= 'number' then options.raise(who, '%s must be a number, not %s', name, tostring(value)) end
end

--- Raises unless an option is a whole number from 1.
---@param who string
---@param name string
function options.whole(who, name, value)
  if type(value) ~= 'number' or value < 1 or value % 1 ~= 0 then
    options.raise(who, "option '%s' must be a whole number from 1, not %s", name, tostring(value))
  end
end

return options
