--- Values as a person reads them: strings quoted, tables laid out within limits, all else by its own tostring.
local pretty = {}

local LIMITS = { width = 80, depth = 4, items = 30, entries = 400, string = 2000 }

local KEYWORDS = {}
for word in ([[and break do else elseif end false for function goto if in local nil not or repeat return then true
  until while]]):gmatch('%a+') do KEYWORDS[word] = true end

local function is_name(key)
  return type(key) == 'string' and key:find('^[%a_][%w_]*$') ~= nil and not KEYWORDS[key]
end

local ESCAPES = { ['\n'] = '\\n', ['\t'] = '\\t', ['\r'] = '\\r', ['\0'] = '\\0' }

local function escape(bytes)
  return (bytes:gsub('[%z\1-\31\127-\255]', function(c) return ESCAPES[c] or ('\\%03d'):format(c:byte()) end))
end

-- Well-formed UTF-8 stays as it is, any other byte is escaped.
local function quote(text, limit)
  local more = ''
  if #text > limit then
    more = (' … %d bytes in all'):format(#text)
    text = text:sub(1, limit):gsub('[\192-\255][\128-\191]*$', '')
  end
  local mark = text:find("'", 1, true) and not text:find('"', 1, true) and '"' or "'"
  text = text:gsub('\\', '\\\\')
  if mark == "'" then text = text:gsub("'", "\\'") end
  local out, at = {}, 1
  for from, run, to in text:gmatch('()([\194-\244][\128-\191]+)()') do
    local lead = run:byte()
    local want = lead < 0xE0 and 2 or lead < 0xF0 and 3 or 4
    out[#out + 1] = escape(text:sub(at, from - 1))
    out[#out + 1] = #run >= want and run:sub(1, want) .. escape(run:sub(want + 1)) or escape(run)
    at = to
  end
  out[#out + 1] = escape(text:sub(at))
  return mark .. table.concat(out) .. mark .. more
end

local function parameters(f)
  local names = {}
  for i = 1, debug.getinfo(f, 'u').nparams do names[i] = debug.getlocal(f, i) or '?' end
  if debug.getinfo(f, 'u').isvararg then names[#names + 1] = '...' end
  return '(' .. table.concat(names, ', ') .. ')'
end

-- The names of Lua's own functions.
local builtin = setmetatable({}, { __mode = 'k' })
for library in ('_G string table math io os coroutine debug package bit jit'):gmatch '%S+' do
  for name, member in pairs(package.loaded[library] or {}) do
    if library ~= '_G' then name = library .. '.' .. name end
    if type(member) == 'function' then builtin[member] = name end
  end
end

--- `function(x, dim) recipe.lua:12`, or `function string.rep`
function pretty.signature(f)
  local info = debug.getinfo(f, 'S')
  if info.what == 'C' then return builtin[f] and 'function ' .. builtin[f] or tostring(f) end
  return ('function%s %s:%d'):format(parameters(f), info.short_src, info.linedefined)
end

-- A tensor inside a table: its shape and dtype.
local function describe(value)
  local tensor = package.loaded['lumoe.tensor']
  if type(value) ~= 'cdata' or type(tensor) ~= 'table' or not tensor.is_tensor(value) then return nil end
  local ok, text = pcall(tensor.describe, value)
  return ok and 'tensor ' .. text or 'tensor (gone)' -- its scope has ended
end

local function has_tostring(value)
  local metatable = debug.getmetatable(value)
  return type(metatable) == 'table' and rawget(metatable, '__tostring') ~= nil
end

local RANK = { number = 1, string = 2, boolean = 3 }

local function before(a, b) -- numbers, then strings, then the rest
  local ta, tb = type(a), type(b)
  if ta ~= tb then return (RANK[ta] or 9) < (RANK[tb] or 9) end
  if RANK[ta] and ta ~= 'boolean' then return a < b end
  return tostring(a) < tostring(b)
end

local function columns(text) -- UTF-8 characters, near enough
  return #text:gsub('[\128-\191]', '')
end

local show

-- Keys after the sequence 1..#t, in order.
local function other_keys(t)
  local keys, length = {}, #t
  for key in next, t do
    if not (type(key) == 'number' and key >= 1 and key <= length and key % 1 == 0) then keys[#keys + 1] = key end
  end
  table.sort(keys, before)
  return keys
end

local function show_table(t, depth, indent, state)
  if state.open[t] then return '<cycle>' end
  if next(t) == nil then return '{}' end
  if depth >= state.depth then return '{…}' end
  state.open[t] = true

  local entries, left_out = {}, 0
  local function add(prefix, value)
    if #entries >= state.items or state.entries <= 0 then
      left_out = left_out + 1
      return
    end
    state.entries = state.entries - 1
    entries[#entries + 1] = prefix .. show(value, depth + 1, indent .. '  ', state)
  end
  for i = 1, #t do add('', rawget(t, i)) end
  for _, key in ipairs(other_keys(t)) do
    add((is_name(key) and key or '[' .. show(key, state.depth, indent, state) .. ']') .. ' = ', rawget(t, key))
  end
  if left_out > 0 then entries[#entries + 1] = ('… %d more'):format(left_out) end
  state.open[t] = nil

  local one_line = '{ ' .. table.concat(entries, ', ') .. ' }'
  if columns(one_line) + #indent <= state.width and not one_line:find('\n', 1, true) then return one_line end
  -- Short values of a sequence fill lines; all else has a line for each entry.
  local lines, line = {}, nil
  for _, entry in ipairs(entries) do
    local fits = line and columns(line) + columns(entry) + #indent + 5 <= state.width
    if #t > 0 and fits and not entry:find('\n', 1, true) then
      line = line .. ', ' .. entry
    else
      lines[#lines + 1] = line
      line = entry
    end
  end
  lines[#lines + 1] = line
  local inner = '\n' .. indent .. '  '
  return '{' .. inner .. table.concat(lines, ',' .. inner) .. '\n' .. indent .. '}'
end

function show(value, depth, indent, state)
  local kind = type(value)
  if kind == 'string' then return quote(value, depth == 0 and state.string or 200) end
  if kind == 'function' then return pretty.signature(value) end
  if kind == 'table' and not has_tostring(value) then return show_table(value, depth, indent, state) end
  local text = depth > 0 and describe(value) or tostring(value)
  if depth > 0 and text:find('\n', 1, true) then text = text:match '^[^\n]*' .. ' …' end
  return text
end

--- The text of a value.
---@param value any
---@param limits { width: integer?, depth: integer?, items: integer?, entries: integer?, string: integer? }?
---@return string
function pretty.show(value, limits)
  local state = { open = {} }
  for name, limit in pairs(LIMITS) do state[name] = limits and limits[name] or limit end
  return show(value, 0, '', state)
end

return pretty
