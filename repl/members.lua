--- What can stand behind a dot or a colon: the members of a value, for completion and for help.
local ffi = require 'ffi'

local members = {}

local providers = {}

--- Adds a source of members, for values whose __index is a function.
---@param provider fun(value: any): table?  name -> member; nil if the value is not its kind
function members.provide(provider)
  providers[#providers + 1] = provider
end

local POINTER, ATTRIBUTE = 2, 8 -- lj_ctype.h: CT_PTR, which references are too, and CT_ATTRIB

-- LuaJIT keeps ffi.metatype's tables by negative type id in the environment of its own functions. A pointer indexes as
-- what it points to.
local function cdata_metatable(value)
  local metatypes = debug.getfenv(ffi.metatype)
  if metatypes == _G then return nil end
  local id = tonumber(ffi.typeof(value))
  while ffi.typeinfo do
    local info = ffi.typeinfo(id).info
    local kind = bit.rshift(info, 28)
    if kind ~= POINTER and kind ~= ATTRIBUTE then break end
    id = bit.band(info, 0xffff)
  end
  return rawget(metatypes, -id)
end

--- The metatable that decides what `value.name` means, cdata's included.
---@return table?
function members.metatable(value)
  local metatable
  if type(value) == 'cdata' then metatable = cdata_metatable(value) else metatable = debug.getmetatable(value) end
  return type(metatable) == 'table' and metatable or nil
end

local function collect(value, into, depth)
  if depth > 10 then return end
  if type(value) == 'table' then
    for name, member in next, value do
      if type(name) == 'string' and into[name] == nil then into[name] = member end
    end
  end
  for _, provider in ipairs(providers) do
    local ok, more = pcall(provider, value)
    if ok and type(more) == 'table' then collect(more, into, depth + 1) end
  end
  local metatable = members.metatable(value)
  local index = metatable and rawget(metatable, '__index')
  if type(index) == 'table' and index ~= value then collect(index, into, depth + 1) end
end

--- All members of a value that can be listed: its own and those its metatable's __index leads to.
---@return table<string, any>
function members.of(value)
  local into = {}
  collect(value, into, 0)
  return into
end

-- Tensors: the methods that lumoe.tensor binds and the fields that it computes, whatever the handle's __index is.
members.provide(function(value)
  local tensor = package.loaded['lumoe.tensor']
  if type(tensor) ~= 'table' or type(value) ~= 'cdata' or not tensor.is_tensor(value) then return nil end
  local all = {}
  for name in pairs(tensor.fields) do all[name] = true end -- no functions: they stand behind a dot alone
  for name, method in pairs(tensor.all_methods()) do all[name] = method end
  return all
end)

return members
