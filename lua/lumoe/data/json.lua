--- JSON with sorted keys and one entry a line, so that manifests can be compared and read.
local cjson = require 'cjson'

local json = { decode = cjson.decode }

local function write(value, indent, out)
  if type(value) ~= 'table' then
    out[#out + 1] = (cjson.encode(value):gsub('\\/', '/'))
  elseif #value > 0 then
    local items = {}
    for i, item in ipairs(value) do
      local nested = {}
      write(item, indent, nested)
      items[i] = table.concat(nested)
    end
    out[#out + 1] = '[' .. table.concat(items, ', ') .. ']'
  else
    local keys = {}
    for key in pairs(value) do keys[#keys + 1] = tostring(key) end
    table.sort(keys)
    if #keys == 0 then
      out[#out + 1] = '{}'
      return
    end
    for i, key in ipairs(keys) do
      out[#out + 1] = (i == 1 and '{\n' or ',\n') .. indent .. '  ' .. cjson.encode(key):gsub('\\/', '/') .. ': '
      write(value[key], indent .. '  ', out)
    end
    out[#out + 1] = '\n' .. indent .. '}'
  end
end

--- A table with string keys, or a list, as text.
---@param value table
---@return string
function json.encode(value)
  local out = {}
  write(value, '', out)
  return table.concat(out) .. '\n'
end

return json
