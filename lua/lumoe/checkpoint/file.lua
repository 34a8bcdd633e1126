--- Files through runtime/file.h: written whole, read with checks; every failure names the file.
-- Failures are raised without a position, which the public function adds (checkpoint/ranks.lua).
local ffi = require 'ffi'
local C = require 'lumoe.ffi'

local file = {}

---@class lumoe.File
local File = {}
File.__index = File

local out, crc, swapped = ffi.new 'lm_file *[1]', ffi.new 'uint32_t[1]', ffi.new 'int[1]'

local function check(st)
  if st < 0 then error(ffi.string(C.lm_last_error()), 0) end
end

local function wrap(st, path)
  check(st)
  return setmetatable({ pointer = ffi.gc(out[0], C.lm_file_close), path = path }, File)
end

--- A new file for writing.
function file.create(path) return wrap(C.lm_file_create(path, out), path) end

--- An ordinary file for reading; `size` in bytes.
function file.open(path)
  local self = wrap(C.lm_file_open(path, out), path)
  self.size = C.lm_file_size(self.pointer)
  return self
end

--- Appends a Lua string, or `bytes` bytes from a pointer. Returns their CRC-32.
function File:write(data, bytes)
  crc[0] = 0
  check(C.lm_file_write(self.pointer, data, bytes or #data, crc))
  return crc[0]
end

--- Fills `pointer` (nil: nothing) with `bytes` from `offset`. Returns their CRC-32.
function File:read(offset, bytes, pointer)
  crc[0] = 0
  check(C.lm_file_read(self.pointer, offset, pointer, bytes, crc))
  return crc[0]
end

function File:read_string(offset, bytes)
  local buffer = ffi.new('char[?]', math.max(bytes, 1))
  self:read(offset, bytes, buffer)
  return ffi.string(buffer, bytes)
end

function File:close()
  C.lm_file_close(ffi.gc(self.pointer, nil))
  self.pointer = nil
end

--- Waits for the disk, then closes.
function File:commit()
  check(C.lm_file_sync(self.pointer))
  self:close()
end

--- Waits until the names in a directory are on the disk.
function file.sync_dir(path) check(C.lm_file_sync_dir(path)) end

--- Renames; what has the name already is then called `from`. Returns whether something had.
function file.replace(from, to)
  check(C.lm_file_replace(from, to, swapped))
  return swapped[0] == 1
end

--- A small file, whole.
function file.read_all(path)
  local self = file.open(path)
  local text = self:read_string(0, self.size)
  self:close()
  return text
end

--- A small file, written and synced.
function file.write_all(path, text)
  local self = file.create(path)
  self:write(text)
  self:commit()
end

return file
