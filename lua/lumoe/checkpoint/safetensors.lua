--- The safetensors format: data, never code.
--
--   8 bytes   length of the header, little-endian
--   header    JSON: name -> { dtype, shape, data_offsets = [from, to] }, and __metadata__: name -> text
--   data      the tensors, row-major, little-endian, one after the other without holes
--
-- A file is checked whole before any of it is used: what a header says must fill the file exactly.
local ffi = require 'ffi'
local autograd = require 'lumoe.autograd'
local cjson = require 'cjson'
local file = require 'lumoe.checkpoint.file'
local json = require 'lumoe.checkpoint.json'
local tensor = require 'lumoe.tensor'

local safetensors = {}

local MAX_HEADER = 100 * 1000 * 1000 -- the limit of the reference reader
local FORMAT = { f32 = 'F32', bf16 = 'BF16', i32 = 'I32', i64 = 'I64', u8 = 'U8' }
local SIZE = { F64 = 8, F32 = 4, F16 = 2, BF16 = 2, I64 = 8, I32 = 4, I16 = 2, I8 = 1, U64 = 8, U32 = 4, U16 = 2, U8 = 1,
  BOOL = 1, F8_E4M3 = 1, F8_E5M2 = 1 }
local ORDER = { i64 = 1, f32 = 2, i32 = 3, bf16 = 4, u8 = 5 } -- in a file
local OURS = {}
for ours, theirs in pairs(FORMAT) do OURS[theirs] = ours end
OURS.BOOL = 'u8'

-- ---- reading ------------------------------------------------------------------------------

---@class lumoe.SafetensorsFile
---@field path string
---@field metadata table<string, string>
---@field tensors table<string, { dtype: string, shape: integer[], from: integer, bytes: integer }>
local Reader = {}
Reader.__index = Reader

local function is_count(x) return type(x) == 'number' and x >= 0 and x % 1 == 0 and x < 2 ^ 53 end

-- One entry of the header, checked by itself.
local function entry(path, name, raw)
  local function wrong(format, ...) error(("%s: tensor '%s': %s"):format(path, name, format:format(...)), 0) end
  if type(raw) ~= 'table' then wrong('is described by a %s', type(raw)) end
  local size = SIZE[raw.dtype]
  if not size then wrong('has unknown dtype %s', tostring(raw.dtype)) end
  if type(raw.shape) ~= 'table' then wrong 'has no shape' end
  local count = 1
  for i = 1, #raw.shape do
    if not is_count(raw.shape[i]) then wrong('has size %s in dim %d', tostring(raw.shape[i]), i - 1) end
    count = count * raw.shape[i]
  end
  local offsets = raw.data_offsets
  if type(offsets) ~= 'table' or #offsets ~= 2 or not is_count(offsets[1]) or not is_count(offsets[2]) then
    wrong 'has no data_offsets of two numbers'
  end
  local from, to = offsets[1], offsets[2]
  if to < from then wrong('begins at byte %.0f and ends before, at %.0f', from, to) end
  if to - from ~= count * size then
    wrong('holds %.0f bytes, but [%s] %s is %.0f', to - from, table.concat(raw.shape, ', '), raw.dtype, count * size)
  end
  return { name = name, dtype = raw.dtype, shape = raw.shape, from = from, bytes = to - from }
end

-- The entries must cover the data exactly: neither over one another nor with holes.
local function check_cover(path, list, data_bytes)
  table.sort(list, function(a, b)
    if a.from ~= b.from then return a.from < b.from end
    return a.bytes < b.bytes
  end)
  local at = 0
  for _, e in ipairs(list) do
    if e.from < at then error(("%s: tensor '%s' begins at byte %.0f, inside another"):format(path, e.name, e.from), 0) end
    if e.from > at then error(("%s: nothing describes bytes %.0f to %.0f, before tensor '%s'"):format(path, at, e.from, e.name), 0) end
    at = e.from + e.bytes
  end
  if at > data_bytes then
    error(('%s: is cut off: its header describes %.0f bytes of data, the file has %.0f'):format(path, at, data_bytes), 0)
  elseif at < data_bytes then
    error(('%s: has %.0f bytes behind its last tensor'):format(path, data_bytes - at), 0)
  end
end

--- Opens a file and checks all of its header. Raises naming the file and what is wrong.
---@param path string
---@return lumoe.SafetensorsFile
function safetensors.open(path)
  local source = file.open(path)
  if source.size < 8 then
    error(('%s: has %d bytes; a safetensors file begins with 8 for the length of its header'):format(path, source.size), 0)
  end
  local length = ffi.new 'uint64_t[1]'
  source:read(0, 8, length)
  local header_bytes = tonumber(length[0])
  if header_bytes > MAX_HEADER then
    error(('%s: is no safetensors file: its header would have %.0f bytes'):format(path, header_bytes), 0)
  elseif 8 + header_bytes > source.size then
    error(('%s: is cut off, or no safetensors file: its header would have %.0f bytes, the file has %.0f')
      :format(path, header_bytes, source.size), 0)
  end
  local header, message = json.decode(source:read_string(8, header_bytes))
  if type(header) ~= 'table' then
    error(('%s: is corrupt, or no safetensors file: its header is not JSON: %s'):format(path, message or 'not a table'), 0)
  end
  local metadata = header.__metadata__ or {}
  if type(metadata) ~= 'table' then error(path .. ': its __metadata__ is not a table', 0) end
  header.__metadata__ = nil
  local list, tensors = {}, {}
  for name, raw in pairs(header) do
    local e = entry(path, tostring(name), raw)
    list[#list + 1], tensors[e.name] = e, e
  end
  check_cover(path, list, source.size - 8 - header_bytes)
  return setmetatable({ path = path, source = source, data = 8 + header_bytes, tensors = tensors, metadata = metadata }, Reader)
end

--- The dtype of tensor `name` in Lumoe's words; raises when Lumoe has none for it.
function Reader:dtype(name)
  local theirs = self.tensors[name].dtype
  if not OURS[theirs] then
    error(("%s: tensor '%s' is %s, which Lumoe has no dtype for"):format(self.path, name, theirs), 0)
  end
  return OURS[theirs]
end

--- Reads `bytes` of a tensor's data, from its byte `from`, to a pointer (nil: nowhere). Returns their CRC-32.
function Reader:read(name, from, bytes, pointer)
  return self.source:read(self.data + self.tensors[name].from + from, bytes, pointer)
end

function Reader:close() self.source:close() end

-- ---- writing ------------------------------------------------------------------------------

local function describe(item, from)
  return ('%s:{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}'):format(cjson.encode(item.name),
    FORMAT[item.dtype], table.concat(item.shape, ','), from, from + item.bytes)
end

local function describe_metadata(metadata)
  local parts = {}
  for key, text in pairs(metadata) do parts[#parts + 1] = cjson.encode(key) .. ':' .. cjson.encode(text) end
  table.sort(parts)
  return '"__metadata__":{' .. table.concat(parts, ',') .. '}'
end

local function header_of(list, metadata)
  local parts, at = {}, 0
  if metadata and next(metadata) ~= nil then parts[1] = describe_metadata(metadata) end
  for _, item in ipairs(list) do
    parts[#parts + 1] = describe(item, at)
    at = at + item.bytes
  end
  local text = '{' .. table.concat(parts, ',') .. '}'
  text = text .. (' '):rep(-#text % 8) -- the data begins at a multiple of 8
  local length = ffi.new('uint64_t[1]', #text)
  return ffi.string(length, 8) .. text
end

-- A tensor, or one that is yet to be fetched: { dtype, shape, take }.
local function item_of(name, t)
  local item = { name = name, dtype = t.dtype }
  if tensor.is_tensor(t) then item.shape, item.take = t:shape_table(), function() return t end
  else item.shape, item.take = t.shape, t.take end
  item.bytes, item.order = SIZE[FORMAT[t.dtype]], ORDER[t.dtype]
  for _, size in ipairs(item.shape) do item.bytes = item.bytes * size end
  return item
end

local function write_data(target, item)
  if item.bytes == 0 then return target:write(nil, 0) end
  return autograd.scope(function() -- what was fetched goes at once
    return autograd.no_grad(function() return target:write(item.take():contiguous():data_ptr(), item.bytes) end)
  end)
end

--- Writes tensors to a new file, synced: wide ones first, so that every element is aligned, then by name;
-- the very bytes that the reference writer makes. A tensor may be given as { dtype, shape, take }, `take` being
-- a function that returns it when its turn comes.
---@param path string
---@param tensors table<string, lumoe.Tensor|table>
---@param metadata table<string, string>?
---@return table<string, integer> sums  name -> CRC-32 of its bytes
function safetensors.write(path, tensors, metadata)
  local list = {}
  for name, t in pairs(tensors) do list[#list + 1] = item_of(name, t) end
  table.sort(list, function(a, b)
    if a.order ~= b.order then return a.order < b.order end
    return a.name < b.name
  end)
  local target, sums = file.create(path), {}
  target:write(header_of(list, metadata))
  for _, item in ipairs(list) do sums[item.name] = write_data(target, item) end
  target:commit()
  return sums
end

return safetensors
