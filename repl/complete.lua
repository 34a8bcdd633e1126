--- What Tab offers: members behind `.` and `:`, globals and keywords elsewhere, file names inside strings,
-- module names inside a require. Nothing of the line is run, but __index is asked on the way along a path.
local lfs = require 'lfs'

local members = require 'repl.members'

local complete = {}

local KEYWORDS = {}
for word in ([[and break do else elseif end false for function goto if in local nil not or repeat return then true
  until while]]):gmatch('%a+') do KEYWORDS[word] = true end

-- Where the cursor stands: 'code'; 'string' and where it began (the quote's index); or 'text', a comment or [[…]].
local function context(line)
  local at = 1
  while at <= #line do
    local long = line:match('^%-%-%[(=*)%[', at) or line:match('^%[(=*)%[', at)
    local character = line:sub(at, at)
    if long then
      local _, close = line:find(']' .. long .. ']', at, true)
      if not close then return 'text' end
      at = close + 1
    elseif line:find('^%-%-', at) then
      at = line:find('\n', at, true)
      if not at then return 'text' end
    elseif character == '"' or character == "'" then
      local start = at
      repeat
        at = line:find('[\\\n' .. character .. ']', at + 1)
        if not at then return 'string', start end
        local found = line:sub(at, at)
        if found == '\\' then at = at + 1 end
      until found ~= '\\'
      at = at + 1
    else
      at = at + 1
    end
  end
  return 'code'
end

local function callable(value)
  if type(value) == 'function' then return true end
  local metatable = members.metatable(value)
  return metatable ~= nil and rawget(metatable, '__call') ~= nil
end

local function index(value, key)
  local ok, found = pcall(function() return value[key] end)
  if ok then return found end
end

-- The value of `a.b["c"][1].d`, the longest such expression at the end of `text`; nil where a call or an operator
-- would have to be run.
local function resolve(text, globals)
  if text:find '[\'"]%s*%)$' then return '' end -- ('%d'):rep
  local steps, rest = {}, text
  while true do
    local before, name = rest:match '^(.-)([%a_][%w_]*)%s*$'
    local opened, number = rest:match '^(.-)%[%s*(%-?%d+)%s*%]%s*$'
    local opened_by_name, _, text_key = rest:match '^(.-)%[%s*(["\'])([^"\']*)%2%s*%]%s*$'
    if name then
      -- the shortest prefix of a lazy match leaves the longest name
      local parent = before:match '^(.*)%.%s*$'
      if parent and not before:find '%.%.%s*$' then
        table.insert(steps, 1, name)
        rest = parent
      else
        if KEYWORDS[name] or before:find '[:)%]]%s*$' then return nil end
        local value = index(globals, name)
        for _, key in ipairs(steps) do
          if value == nil then return nil end
          value = index(value, key)
        end
        return value
      end
    elseif opened then
      table.insert(steps, 1, tonumber(number))
      rest = opened
    elseif opened_by_name then
      table.insert(steps, 1, text_key)
      rest = opened_by_name
    else
      return nil
    end
  end
end

-- Names beginning with `_` are shown to who asks for them.
local function matches(name, word)
  return name:sub(1, #word) == word and name:find '^[%a_][%w_]*$' and (word ~= '' or name:sub(1, 1) ~= '_')
end

local function names_of(value, word, only_callable)
  local names = {}
  for name, member in pairs(members.of(value)) do
    if matches(name, word) and not (only_callable and not callable(member)) then names[#names + 1] = name end
  end
  return names
end

local function code(line, globals)
  local before, word = line:match '^(.-)([%a_]?[%w_]*)$'
  local path, separator = before:match '^(.*[^.:])%s*([.:])%s*$'
  if path then
    local value = resolve(path, globals)
    if value == nil then return {}, #before end
    return names_of(value, word, separator == ':'), #before
  end
  if before:find '[.:]%s*$' and not before:find '%.%.%s*$' then return {}, #before end
  local names = names_of(globals, word)
  for keyword in pairs(KEYWORDS) do
    if keyword:sub(1, #word) == word and word ~= '' then names[#names + 1] = keyword end
  end
  return names, #before
end

local function files(typed, start)
  local folder, word = typed:match '^(.*/)([^/]*)$'
  folder, word = folder or '', word or typed
  local where = folder:gsub('^~/', (os.getenv('HOME') or '~') .. '/')
  local names, append = {}, nil
  local ok, iterator, state = pcall(lfs.dir, where == '' and '.' or where)
  for name in ok and iterator or function() end, ok and state or nil do
    if name:sub(1, #word) == word and name ~= '.' and name ~= '..' and (word ~= '' or name:sub(1, 1) ~= '.') then
      local is_folder = lfs.attributes(where .. name, 'mode') == 'directory'
      names[#names + 1] = is_folder and name .. '/' or name
      append = not is_folder
    end
  end
  return names, start + #folder, append
end

-- Modules that are loaded, preloaded, or lie on package.path.
local function modules(typed, start)
  local found = {}
  for _, known in ipairs { package.loaded, package.preload } do
    for name in pairs(known) do found[name] = true end
  end
  local parent = typed:match '^(.*%.)' or ''
  for template in package.path:gmatch '[^;]+' do
    local prefix, suffix = template:match '^(.-)%?(.*)$'
    local folder = prefix and prefix .. parent:gsub('%.', '/')
    local ok, iterator, state = pcall(lfs.dir, folder == '' and '.' or folder)
    for name in ok and iterator or function() end, ok and state or nil do
      if suffix == '.lua' and name:find '%.lua$' then
        found[parent .. name:sub(1, -5)] = true
      elseif suffix == '/init.lua' and name:sub(1, 1) ~= '.' and lfs.attributes(folder .. name .. suffix) then
        found[parent .. name] = true
      end
    end
  end
  local names = {}
  for name in pairs(found) do
    if name:sub(1, #typed) == typed then names[#names + 1] = name end
  end
  return names, start, true
end

--- What may replace the end of a line.
---@param line string     the line up to the cursor
---@param globals table?  default _G
---@return string[] names  sorted; each a full replacement
---@return integer start   of what they replace, in bytes from 0
---@return string? append  what to add after a name that is the only one
function complete.complete(line, globals)
  local kind, quote = context(line)
  local names, start, append = {}, #line, nil
  if kind == 'code' then
    names, start = code(line, globals or _G)
  elseif kind == 'string' then
    local is_require = line:sub(1, quote - 1):find '%f[%w_]require%s*%(?%s*$'
    names, start, append = (is_require and modules or files)(line:sub(quote + 1), quote)
    append = append and #names == 1 and line:sub(quote, quote) or nil
  end
  table.sort(names)
  return names, start, append
end

--- See repl.members.provide.
complete.provide = members.provide

return complete
