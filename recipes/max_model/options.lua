--- The command line of recipes/max_model.lua.
local parser = require 'recipes.parser'
local modes = require 'recipes.max_model.modes'

local options = {}

local UNITS = { [''] = 1, KiB = 2 ^ 10, MiB = 2 ^ 20, GiB = 2 ^ 30, kB = 1e3, MB = 1e6, GB = 1e9 }

local function bytes(text)
  local number, unit = text:match '^([%d.]+)%s*(%a*)$'
  if not tonumber(number) or not UNITS[unit] then return nil, ("'%s' is not a size as 256MiB"):format(text) end
  return tonumber(number) * UNITS[unit]
end

local function count(text)
  local n = tonumber(text)
  if not n or n < 1 or n % 1 ~= 0 then return nil, ("'%s' is not a whole number from 1"):format(text) end
  return n
end

local function mode_list(text)
  local known, list = {}, {}
  for _, name in ipairs(modes.names()) do known[name] = true end
  for name in text:gmatch '[^,%s]+' do
    if not known[name] then return nil, ("no mode '%s'; there are %s"):format(name, table.concat(modes.names(), ', ')) end
    list[#list + 1] = name
  end
  return list
end

function options.parse(arguments)
  local p = parser('lumoe recipes/max_model.lua', 'Looks for the largest Mixture-of-Experts model that can be trained in '
    .. 'a given memory, with each kind of parallelism and offload.')
  local function option(names, default, convert, text)
    return p:option(names, text):convert(convert):default(tostring(default))
  end
  option('--limit', '256MiB', bytes, 'Memory of a rank'):argname 'SIZE'
  p:option('--modes', 'Only these: ' .. table.concat(modes.names(), ',')):convert(mode_list):argname 'LIST'
  p:option('--json', 'A file for the table'):argname 'FILE'
  p:option('--offload-dir', 'Where what is offloaded goes ($TMPDIR)'):argname 'DIR'
  option('--bucket', '2MiB', bytes, 'State that passes through memory at a time where it is offloaded'):argname 'SIZE'
  option('--layers', 12, count, 'Transformer layers, all with experts'):argname 'N'
  option('--dim', 128, count, 'Width'):argname 'N'
  option('--heads', 4, count, 'Attention heads'):argname 'N'
  option('--hidden', 128, count, 'Width of an expert'):argname 'N'
  option('--vocab', 8192, count, 'Rows of the embedding'):argname 'N'
  option('--sequences', 2, count, 'Sequences of a rank in a step'):argname 'N'
  option('--tokens', 32, count, 'Tokens of a sequence'):argname 'N'
  option('--most', 8192, count, 'Experts of a layer at which to stop looking'):argname 'N'
  return p:parse(arguments)
end

return options
