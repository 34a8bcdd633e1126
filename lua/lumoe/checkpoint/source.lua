--- Where tensors are read from: a checkpoint, a safetensors file, or Hugging Face's sharded model.
--
-- Whichever it is, a source knows whole tensors by name, { dtype, shape, pieces }, and a piece by its
-- file, its name there, and its rows of the whole.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local file = require 'lumoe.checkpoint.file'
local json = require 'lumoe.checkpoint.json'
local path_of = require 'pl.path'
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
  return { shape = shape, pieces = { { name = name, file = file_name } } }
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

-- A whole tensor of our own index: its pieces must follow one another to the last row.
local function check_whole(path, name, whole)
  local function wrong(format, ...) error(("%s: is corrupt: tensor '%s' %s"):format(path, name, format:format(...)), 0) end
  if type(whole) ~= 'table' or not is_list(whole.shape) or not is_list(whole.pieces) or type(whole.dtype) ~= 'string' then
    wrong 'has no dtype, shape and pieces'
  end
  for _, n in ipairs(whole.shape) do
    if not is_count(n) then wrong 'has a shape that is not made of sizes' end
  end
  local at = 0
  for _, p in ipairs(whole.pieces) do
    if type(p) ~= 'table' or type(p.name) ~= 'string' or type(p.file) ~= 'string' or not is_count(p.crc32) then
      wrong 'has a piece without name, file and crc32'
    end
    if p.rows then
      if not is_count(p.rows) or p.first ~= at then wrong('has its rows from %.0f in no piece', at) end
      at = at + p.rows
    elseif #whole.pieces > 1 then wrong 'has several pieces, one without rows' end
  end
  local all_there = #whole.pieces == 1 and not whole.pieces[1].rows or at == whole.shape[1]
  if not all_there then wrong('has %.0f rows in its pieces, not %s', at, tostring(whole.shape[1])) end
end

local function own(path, index)
  local self = new(path_of.dirname(path), path_of.dirname(path) .. '/')
  self.index, self.index_path = index, path
  if index.version ~= 1 then
    error(('%s: is of version %s; this Lumoe reads version 1'):format(path, tostring(index.version)), 0)
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
  local shape = { unpack(whole.shape) }
  if p.rows then shape[1] = p.rows end
  if shape_text(found.shape) ~= shape_text(shape) or whole.dtype and whole.dtype ~= dtype then
    error(("%s: tensor '%s' is %s %s, but %s says %s %s"):format(reader.path, p.name, shape_text(found.shape), dtype,
      self.index_path, shape_text(shape), whole.dtype), 0)
  end
  return reader, dtype
end

-- Calls f(piece, first, rows, at) for each part of the runs that lies in a piece; f(piece) when all is wanted of a whole one.
local function each_part(whole, runs, f)
  for _, p in ipairs(whole.pieces) do
    local first, rows = p.first or 0, p.rows or whole.shape[1]
    if not runs and not p.rows then f(p)
    else
      for _, run in ipairs(runs or { { first = 0, rows = whole.shape[1], at = 0 } }) do
        local from, to = math.max(first, run.first), math.min(first + rows, run.first + run.rows)
        if from < to then f(p, from - first, to - from, run.at + from - run.first) end
      end
    end
  end
end

--- Raises unless the pieces that hold these rows (nil: all) are there, fit the index and have its checksums.
---@param name string
---@param runs { first: integer, rows: integer, at: integer }[]?
function Source:verify(name, runs)
  local whole = self.tensors[name]
  self.verified = self.verified or {}
  each_part(whole, runs, function(p)
    local reader = self:piece(whole, p)
    if not p.crc32 or self.verified[p] then return end
    if reader:read(p.name, 0, reader.tensors[p.name].bytes, nil) ~= p.crc32 then
      error(("%s: tensor '%s' is corrupt: its checksum is not the one in %s"):format(reader.path, p.name, self.index_path), 0)
    end
    self.verified[p] = true
  end)
end

local function read_part(reader, p, dtype, target, from, rows)
  local total, count = reader.tensors[p.name].bytes, target:numel()
  if count == 0 then return end
  local size = C.lm_dtype_size(C['LM_' .. dtype:upper()])
  local offset = rows and from * (count / rows) * size or 0
  assert(offset + count * size <= total)
  if target.dtype == dtype and target:is_contiguous() then
    reader:read(p.name, offset, count * size, ffi.cast('char *', target:data_ptr()))
  else
    local raw = tensor.empty(target:shape_table(), { dtype = dtype })
    reader:read(p.name, offset, count * size, raw:data_ptr())
    target:copy_(raw)
    raw:dispose()
  end
end

--- Fills `target`, which holds the rows of `runs` (nil: all), converting where its dtype is another.
---@param name string
---@param target lumoe.Tensor
---@param runs table[]?
function Source:read(name, target, runs)
  local whole = self.tensors[name]
  autograd.no_grad(function()
    target = target:detach()
    each_part(whole, runs, function(p, from, rows, at)
      local reader, dtype = self:piece(whole, p)
      read_part(reader, p, dtype, rows and target:narrow(0, at, rows) or target, from, rows)
    end)
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
