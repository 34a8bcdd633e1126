--- `help(x)`: what the source says about a function, a module or a tensor method.
-- The text is the comment above the definition, so that there is one documentation and not two.
local members = require 'repl.members'
local pretty = require 'repl.print'

local help = {}

local USAGE = [[
An expression's values are shown; the first is kept in `_`. Anything else is run as Lua.
A line that is not complete goes on at `>>`. Locals end with their line, as in lua: keep values in globals.

  help 'nn.Linear'   help(x)     what a name, function, module or tensor is
  Tab                            completes globals, fields, methods, module names, file names
  Ctrl-C                         stops what runs, or clears the line
  Ctrl-R, arrow keys             search and walk the history
  Ctrl-D                         ends

lumoe, nn, moe and dist are loaded where they exist. Scripts must require what they use.]]

local providers = {}

--- Adds a source of documentation.
---@param provider fun(value: any, name: string?): string?
function help.provide(provider)
  providers[#providers + 1] = provider
end

local function lines_of(path)
  local file = io.open(path)
  if not file then return nil end
  local lines = {}
  for line in file:lines() do lines[#lines + 1] = line end
  file:close()
  return lines
end

-- `---@param x T  text` -> `  x: T  text`
local function plain(line)
  local text = line:gsub('^%s*%-%-%-?%s?', '')
  local tag, rest = text:match '^@(%w+)%s*(.*)$'
  if not tag then return text end
  if tag == 'param' or tag == 'field' then return '  ' .. rest:gsub('^(%S+)%s+', '%1: ', 1) end
  if tag == 'return' then return '  returns ' .. rest end
  return nil
end

local function comment(lines, first, last)
  local out = {}
  for i = first, last do out[#out + 1] = plain(lines[i]) end
  return #out > 0 and table.concat(out, '\n') or nil
end

-- The comment that ends on the line before a definition.
local function comment_above(path, defined)
  local lines = lines_of(path)
  if not lines then return nil end
  local first = defined
  while first > 1 and lines[first - 1]:find '^%s*%-%-' do first = first - 1 end
  return comment(lines, first, defined - 1)
end

-- The comment that opens a file.
local function comment_on_top(path)
  local lines = lines_of(path)
  local last = 0
  while lines and lines[last + 1] and lines[last + 1]:find '^%-%-' do last = last + 1 end
  return last > 0 and comment(lines, 1, last) or nil
end

local function source_path(f)
  return debug.getinfo(f, 'S').source:match '^@(.*)$'
end

local function of_function(f, name)
  local info = debug.getinfo(f, 'S')
  if info.what == 'C' then return (name or 'function') .. ': built in; see the LuaJIT or Lua 5.1 manual' end
  local title = pretty.signature(f):gsub('^function', name or 'function', 1)
  local path = source_path(f)
  local text = path and comment_above(path, info.linedefined)
  return text and title .. '\n\n' .. text or title
end

local function module_path(value)
  for name, module in pairs(package.loaded) do
    if module == value and name ~= '_G' then
      return name, package.searchpath(name, package.path)
    end
  end
end

local function member_list(value)
  local names = {}
  for name in pairs(members.of(value)) do
    if name:find '^%a[%w_]*$' then names[#names + 1] = name end
  end
  table.sort(names)
  local lines, line = {}, ' '
  for _, name in ipairs(names) do
    if #line + #name > 78 then
      lines[#lines + 1] = line
      line = ' '
    end
    line = line .. ' ' .. name
  end
  lines[#lines + 1] = line ~= ' ' and line or nil
  return table.concat(lines, '\n')
end

local function of_table(value, name)
  local module, path = module_path(value)
  local title = name or module or 'a table'
  local text = path and comment_on_top(path)
  local metatable = members.metatable(value)
  local call = metatable and rawget(metatable, '__call')
  local constructor = rawget(value, 'new') or rawget(value, 'init') or call
  if not text and type(constructor) == 'function' and source_path(constructor) then
    text = comment_above(source_path(constructor), debug.getinfo(constructor, 'S').linedefined)
      or comment_on_top(source_path(constructor))
  end
  local out = { title .. (path and ('  (%s)'):format(path) or '') }
  if text then out[#out + 1] = '\n' .. text end
  local list = member_list(value)
  if list ~= '' then out[#out + 1] = '\n' .. list end
  return table.concat(out, '\n')
end

local function walk(value, path)
  for key in path:gmatch '[^.:]+' do
    local ok, found = pcall(function() return value[key] end)
    if not ok or found == nil then return nil end
    value = found
  end
  return value
end

-- A name is looked for among the globals, then in lumoe and its rooms, then among the tensor methods.
local function find(name)
  local tensor = package.loaded['lumoe.tensor']
  local places = { _G }
  for _, room in ipairs { 'lumoe', 'lumoe.nn', 'lumoe.moe' } do places[#places + 1] = package.loaded[room] end
  if type(tensor) == 'table' and type(tensor.methods) == 'table' then places[#places + 1] = tensor.methods end
  for _, place in ipairs(places) do
    local value = walk(place, name)
    if value ~= nil then return value end
  end
  return package.loaded[name]
end

--- The help on a value, or on what a string names.
---@param value any
---@return string
function help.text(value)
  local name
  if type(value) == 'string' then
    name = value
    value = find(name)
    if value == nil then return ("nothing is called '%s'"):format(name) end
  end
  for _, provider in ipairs(providers) do
    local ok, text = pcall(provider, value, name)
    if ok and text then return text end
  end
  if type(value) == 'function' then return of_function(value, name) end
  if type(value) == 'table' then return of_table(value, name) end
  local list = member_list(value)
  local title = (name and name .. ': ' or '') .. type(value)
  return list ~= '' and title .. ', with\n\n' .. list or title
end

--- What the prompt calls `help`: prints the help on a value, on what a string names, or on the prompt.
help.help = setmetatable({}, {
  __call = function(_, ...)
    print(select('#', ...) == 0 and USAGE or help.text((...)))
  end,
  __tostring = function() return USAGE end,
})

return help
