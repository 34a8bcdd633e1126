--- JSON that gives back exactly what it was given: numbers to the last bit, sorted keys, one entry a line.
-- Values that would come back as something else (functions, NaN, tables with holes) are errors.
local cjson = require 'cjson'

local json = {}
local parser = cjson.new()
parser.decode_invalid_numbers(false)

local function fail(path, format, ...) error((path == '' and 'it' or path) .. ' ' .. format:format(...), 0) end

-- The length of a list; nil for a table with names. Anything between the two has no place in JSON.
local function length(value, path)
  local count, names = 0, false
  for key in pairs(value) do
    count = count + 1
    if type(key) == 'string' then names = true
    elseif type(key) ~= 'number' then fail(path, 'has a %s as a key; wants names, or a list', type(key)) end
  end
  if names or count == 0 then
    for key in pairs(value) do
      if type(key) == 'number' then fail(path, 'has both names and positions as keys') end
    end
    return nil
  end
  if count ~= #value then fail(path, 'is a list with holes') end
  return count
end

local write

local function write_list(value, indent, path, out)
  out[#out + 1] = '['
  for i, item in ipairs(value) do
    if i > 1 then out[#out + 1] = ', ' end
    write(item, indent, ('%s[%d]'):format(path, i), out)
  end
  out[#out + 1] = ']'
end

local function write_names(value, indent, path, out)
  local keys = {}
  for key in pairs(value) do keys[#keys + 1] = key end
  table.sort(keys)
  out[#out + 1] = '{'
  for i, key in ipairs(keys) do
    out[#out + 1] = ('%s\n%s  %s: '):format(i > 1 and ',' or '', indent, cjson.encode(key))
    write(value[key], indent .. '  ', path == '' and key or path .. '.' .. key, out)
  end
  out[#out + 1] = #keys > 0 and '\n' .. indent .. '}' or '}'
end

function write(value, indent, path, out)
  local kind = type(value)
  if kind == 'table' then
    if getmetatable(value) ~= nil then fail(path, 'is an object, not a plain table') end
    if #indent > 200 then fail(path, 'is nested too deep (or in itself)') end
    local is_list = length(value, path)
    return (is_list and write_list or write_names)(value, indent .. (is_list and ' ' or ''), path, out)
  elseif kind == 'number' then
    if value ~= value or math.abs(value) == math.huge then fail(path, 'is %s, which JSON cannot hold', tostring(value)) end
    out[#out + 1] = ('%.17g'):format(value)
  elseif kind == 'string' then
    out[#out + 1] = cjson.encode(value)
  elseif kind == 'boolean' then
    out[#out + 1] = tostring(value)
  else
    fail(path, 'is a %s; wants tables, strings, numbers and booleans', kind)
  end
end

--- Raises, naming the entry, for what JSON cannot hold.
---@param value table
---@return string
function json.encode(value)
  local out = {}
  write(value, '', '', out)
  return table.concat(out)
end

--- The value, or nil and what is wrong.
---@param text string
---@return any? value, string? message
function json.decode(text)
  local ok, value = pcall(parser.decode, text)
  if ok then return value end
  return nil, (tostring(value):gsub('^.-:%d+: ', ''))
end

return json
