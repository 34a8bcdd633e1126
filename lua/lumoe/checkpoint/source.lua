--- Where tensors are read from: a checkpoint, a safetensors file, or Hugging Face's sharded model.
--
-- Whichever it is, a source knows whole tensors by name, { dtype, shape, pieces }, and a piece by its
-- file, its name there, and which part of the whole it is (checkpoint/region.lua).
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local file = require 'lumoe.checkpoint.file'
local json = require 'lumoe.checkpoint.json'
local path_of = require 'pl.path'
local region = require 'lumoe.checkpoint.region'
local safetensors = require 'lumoe.checkpoint.safetensors'
local tensor = require 'lumoe.tensor'

---@class lumoe.Source
---@field path string
---@field tensors table<string, { dtype: string, shape: integer[], pieces: table[] }>
---@field index table?  of a checkpoint: step, extra, random, optimizer, ...
local Source = {}
Source.__index = Source

local function shape_text(shape) return '[' .. table.concat(shape, ', ') .. ']' end

-- ---- opening ------------------------------------------------------------------------------

-- The reader of a file beside the index; opened once. Indices name files, never places.
function Source:reader(name)
  if not self.readers[name] then
    if name:find '/' or name == '..' then error(("%s: names '%s', which is not a file beside it"):format(self.index_path, name), 0) end
    self.readers[name] = safetensors.open(self.folder .. name)
  end
  return self.readers[name]
end

local function new(path, folder)
  return setmetatable({ path = path, index_path = path, folder = folder, readers = {}, tensors = {} }, Source)
end

local function whole_in(reader, name, file_name)
  local shape = reader.tensors[name].shape
  return { shape = shape, pieces = { { name = name, file = file_name, shape = shape } } }
end

-- One .safetensors file.
local function single(path)
  local self = new(path, path_of.dirname(path) == '' and '' or path_of.dirname(path) .. '/')
  local name = path_of.basename(path)
  local reader = self:reader(name)
  for key in pairs(reader.tensors) do self.tensors[key] = whole_in(reader, key, name) end
  self.metadata = reader.metadata
  return self
end

local function read_index(path)
  local index, message = json.decode(file.read_all(path))
  if type(index) ~= 'table' then error(('%s: is corrupt: %s'):format(path, message or 'not a table'), 0) end
  return index
end

-- Hugging Face's index: { weight_map: name -> file }.
local function sharded(path, index)
  local self = new(path, path_of.dirname(path) == '' and '' or path_of.dirname(path) .. '/')
  if type(index.weight_map) ~= 'table' then error(path .. ': has no weight_map: it is no index of safetensors files', 0) end
  for name, file_name in pairs(index.weight_map) do
    if type(file_name) ~= 'string' then error(("%s: tensor '%s' has no file"):format(path, name), 0) end
    local reader = self:reader(file_name)
    if not reader.tensors[name] then error(("%s: tensor '%s' is not in %s"):format(path, name, reader.path), 0) end
    self.tensors[name] = whole_in(reader, name, file_name)
  end
  return self
end

local function is_list(x) return type(x) == 'table' and (next(x) == nil or #x > 0) end
local function is_count(x) return type(x) == 'number' and x >= 0 and x % 1 == 0 end

-- Version 1 knew rows alone.
local function upgrade(whole, p)
  if p.rows == nil then return end
  p.ranges = { { { p.first, p.rows } } }
  for d = 2, #whole.shape do p.ranges[d] = { { 0, whole.shape[d] } } end
  p.first, p.rows = nil, nil
end

-- A whole tensor of our own index: its pieces must leave out nothing.
local function check_whole(path, name, whole)
  local function wrong(format, ...) error(("%s: is corrupt: tensor '%s' %s"):format(path, name, format:format(...)), 0) end
  if type(whole) ~= 'table' or not is_list(whole.shape) or not is_list(whole.pieces) or type(whole.dtype) ~= 'string' then
    wrong 'has no dtype, shape and pieces'
  end
  for _, n in ipairs(whole.shape) do
    if not is_count(n) then wrong 'has a shape that is not made of sizes' end
  end
  for _, p in ipairs(whole.pieces) do
    if type(p) ~= 'table' or type(p.name) ~= 'string' or type(p.file) ~= 'string' or not is_count(p.crc32) then
      wrong 'has a piece without name, file and crc32'
    end
    upgrade(whole, p)
    p.shape = whole.shape
    if not region.is_sound(p) then wrong("has a piece, '%s', that is no part of [%s]", p.name, table.concat(whole.shape, ', ')) end
    local part = region.new(whole.shape, p.ranges, p.chunk)
    p.ranges, p.chunk = part.ranges, part.chunk
  end
  local gap = region.missing(whole.pieces, whole.shape)
  if gap then wrong('has its elements from %.0f in no piece', gap) end
end

local function own(path, index)
  local self = new(path_of.dirname(path), path_of.dirname(path) .. '/')
  self.index, self.index_path = index, path
  if index.version ~= 1 and index.version ~= 2 then
    error(('%s: is of version %s; this Lumoe reads versions 1 and 2'):format(path, tostring(index.version)), 0)
  end
  local optimizer = index.optimizer
  if type(index.parameters) ~= 'table' or not is_count(index.step) or type(index.extra) ~= 'table' or type(index.random) ~= 'table'
    or optimizer and (type(optimizer) ~= 'table' or type(optimizer.tensors) ~= 'table' or not is_count(optimizer.steps)) then
    error(path .. ': is corrupt: something of step, parameters, optimizer, random, extra is missing', 0)
  end
  for _, group in ipairs { index.parameters, optimizer and optimizer.tensors or {} } do
    for name, whole in pairs(group) do
      check_whole(path, name, whole)
      self.tensors[name] = whole
    end
  end
  return self
end

--- Opens whatever `path` is: a file, an index, or a folder with either. Raises naming the file at fault.
---@param path string
---@return lumoe.Source
local function open(path)
  if path_of.isdir(path) then
    for _, name in ipairs { 'index.json', 'model.safetensors.index.json', 'model.safetensors' } do
      if path_of.exists(path .. '/' .. name) then return open(path .. '/' .. name) end
    end
    error(path .. ': holds neither index.json nor model.safetensors: it is no checkpoint', 0)
  end
  if not path:match '%.json$' then return single(path) end
  local index = read_index(path)
  if index.format == 'lumoe checkpoint' then return own(path, index) end
  return sharded(path, index)
end

-- ---- reading ------------------------------------------------------------------------------

-- The reader of a piece, whose header must agree with the index, and its dtype.
function Source:piece(whole, p)
  local reader = self:reader(p.file)
  local found = reader.tensors[p.name]
  if not found then error(("%s: has no tensor '%s', which %s says it has"):format(reader.path, p.name, self.index_path), 0) end
  local dtype = reader:dtype(p.name)
  local shape = region.held(p)
  if shape_text(found.shape) ~= shape_text(shape) or whole.dtype and whole.dtype ~= dtype then
    error(("%s: tensor '%s' is %s %s, but %s says %s %s"):format(reader.path, p.name, shape_text(found.shape), dtype,
      self.index_path, shape_text(shape), whole.dtype), 0)
  end
  return reader, dtype
end

-- Calls f(piece, stretches) for each piece that has elements of `wanted`: stretches are { here, there, length }.
local function each_piece(whole, wanted, f)
  local ours = region.runs(wanted)
  for _, p in ipairs(whole.pieces) do
    local stretches = {}
    p.runs = p.runs or region.runs(p)
    region.common(ours, p.runs, function(here, there, length)
      stretches[#stretches + 1] = { here = here, there = there, length = length }
    end)
    if #stretches > 0 then f(p, stretches) end
  end
end

--- Raises unless the pieces that hold a part are there, fit the index and have its checksums.
---@param name string
---@param wanted lumoe.Region?  nil: all
function Source:verify(name, wanted)
  local whole = self.tensors[name]
  self.verified = self.verified or {}
  each_piece(whole, wanted or region.new(whole.shape), function(p)
    local reader = self:piece(whole, p)
    if not p.crc32 or self.verified[p] then return end
    if reader:read(p.name, 0, reader.tensors[p.name].bytes, nil) ~= p.crc32 then
      error(("%s: tensor '%s' is corrupt: its checksum is not the one in %s"):format(reader.path, p.name, self.index_path), 0)
    end
    self.verified[p] = true
  end)
end

local function size_of(dtype) return C.lm_dtype_size(C['LM_' .. dtype:upper()]) end
local function bytes_of(t) return ffi.cast('char *', t:data_ptr()) end

-- From file to memory; by way of a copy where elements lie otherwise there, or are of another dtype.
local function read_piece(reader, p, dtype, target, stretches)
  local size, step = size_of(dtype), size_of(target.dtype)
  local one = stretches[1]
  if #stretches == 1 and target.dtype == dtype then
    reader:read(p.name, one.there * size, one.length * size, bytes_of(target) + one.here * step)
    return
  end
  local from, to = one.there, one.there + one.length
  for _, s in ipairs(stretches) do from, to = math.min(from, s.there), math.max(to, s.there + s.length) end
  autograd.scope(function()
    local raw = tensor.empty(to - from, { dtype = dtype })
    reader:read(p.name, from * size, (to - from) * size, raw:data_ptr())
    raw = raw:to(target.dtype)
    local source, into = bytes_of(raw), bytes_of(target)
    for _, s in ipairs(stretches) do ffi.copy(into + s.here * step, source + (s.there - from) * step, s.length * step) end
  end)
end

--- Fills `target`, contiguous, with a part of `name`, converting where its dtype is another.
---@param name string
---@param target lumoe.Tensor
---@param wanted lumoe.Region?  nil: all
function Source:read(name, target, wanted)
  local whole = self.tensors[name]
  autograd.no_grad(function()
    target = target:detach()
    local dense = target:is_contiguous() and target or target:contiguous()
    each_piece(whole, wanted or region.new(whole.shape), function(p, stretches)
      local reader, dtype = self:piece(whole, p)
      read_piece(reader, p, dtype, dense, stretches)
    end)
    if not target:is_contiguous() then target:copy_(dense) end
  end)
end

--- A new tensor with all of `name`, in the dtype that it has in its file.
function Source:tensor(name)
  local whole = self.tensors[name]
  local dtype = whole.dtype
  if not dtype then
    local _, found = self:piece(whole, whole.pieces[1])
    dtype = found
  end
  local t = tensor.empty(whole.shape, { dtype = dtype })
  self:read(name, t)
  return t
end

function Source:close()
  for _, reader in pairs(self.readers) do reader:close() end
  self.readers = {}
end

return { open = open, shape_text = shape_text }
