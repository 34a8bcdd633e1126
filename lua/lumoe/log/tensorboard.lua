--- Event files that TensorBoard reads: scalars by tag and step.
-- A file is a row of TFRecords, [length u64][crc of length u32][data][crc of data u32], little-endian; the
-- data of each is a protobuf message `Event`, of which the few fields below are needed
-- (tensorflow/core/util/event.proto).
local bit = require 'bit'
local ffi = require 'ffi'
local lfs = require 'lfs'
local time = require 'posix.time'
local unistd = require 'posix.unistd'
local options = require 'lumoe.options'

local band, bxor, rshift, lshift, bor = bit.band, bit.bxor, bit.rshift, bit.lshift, bit.bor

local CRC32C = {} -- Castagnoli's polynomial, reflected
for byte = 0, 255 do
  local crc = byte
  for _ = 1, 8 do crc = bxor(rshift(crc, 1), band(crc, 1) == 1 and 0x82F63B78 or 0) end
  CRC32C[byte] = crc
end

local function crc32c(data)
  local crc = 0xFFFFFFFF
  for i = 1, #data do crc = bxor(rshift(crc, 8), CRC32C[band(bxor(crc, data:byte(i)), 0xFF)]) end
  return bit.bnot(crc)
end

-- TFRecords store crcs rotated and shifted, as crcs of data that holds crcs go wrong.
local function masked(crc) return bit.tobit(bor(rshift(crc, 15), lshift(crc, 17)) + 0xA282EAD8) end

local function u32(value)
  local function byte(shift) return band(rshift(value, shift), 255) end
  return string.char(byte(0), byte(8), byte(16), byte(24))
end

local function tfrecord(data)
  local length = u32(#data) .. u32(0)
  return length .. u32(masked(crc32c(length))) .. data .. u32(masked(crc32c(data)))
end

local VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5 -- protobuf's wire types

local function varint(n)
  local bytes = {}
  while n >= 128 do
    bytes[#bytes + 1] = string.char(n % 128 + 128)
    n = math.floor(n / 128)
  end
  return table.concat(bytes) .. string.char(n)
end

local function key(field, wire) return varint(field * 8 + wire) end
local function integer(field, value) return key(field, VARINT) .. varint(value) end
local function text(field, value) return key(field, BYTES) .. varint(#value) .. value end
local function float(field, value) return key(field, FIXED32) .. ffi.string(ffi.new('float[1]', value), 4) end
local function double(field, value)
  return key(field, FIXED64) .. ffi.string(ffi.new('double[1]', value), 8)
end

-- Event { wall_time = 1; step = 2; file_version = 3; summary = 5; session_log = 7 }
local function event(wall_time, step, what)
  return tfrecord(double(1, wall_time) .. (step > 0 and integer(2, step) or '') .. what)
end

local function now()
  local t = time.clock_gettime(time.CLOCK_REALTIME)
  return t.tv_sec + t.tv_nsec * 1e-9
end

local Writer = {}
Writer.__index = Writer

--- Writes the scalars of one step.
---@param step integer
---@param scalars table<string, number>  tag -> value, such as `train/loss`; what is not a number is left out
function Writer:scalars(step, scalars)
  if type(step) ~= 'number' or step < 0 or step % 1 ~= 0 then
    options.raise('tensorboard', 'step must be an integer from 0, not %s', tostring(step))
  end
  local tags = {}
  for tag, value in pairs(scalars) do
    if type(value) == 'number' then tags[#tags + 1] = tag end
  end
  table.sort(tags)
  local values = {}
  for i, tag in ipairs(tags) do -- Summary { repeated Value { tag = 1; simple_value = 2 } value = 1 }
    values[i] = text(1, text(1, tag) .. float(2, scalars[tag]))
  end
  assert(self.file:write(event(self.clock(), step, text(5, table.concat(values)))))
  assert(self.file:flush())
end

function Writer:close()
  if self.file then self.file:close() end
  self.file = nil
end

local SESSION_START = text(7, integer(1, 1)) -- SessionLog { status = 1 }, START being 1

local function new_path(dir)
  local host = assert(io.open '/proc/sys/kernel/hostname')
  local name = host:read '*l'
  host:close()
  for number = 0, math.huge do
    local path = ('%s/events.out.tfevents.%010d.%s.%d.%d'):format(
      dir, os.time(), name, unistd.getpid(), number)
    if not lfs.attributes(path) then return path end
  end
end

--- Opens a new event file in `dir`, which is made if it is missing. With `resume_step`, readers forget
-- what earlier files of the folder say about later steps.
---@param dir string
---@param opts? { resume_step: integer?, clock: (fun(): number)? }  clock: seconds since 1970
---@return lumoe.TensorBoard
local function open(dir, opts)
  opts = options.check('tensorboard', opts or {}, { resume_step = 'number?', clock = 'function?' })
  if not lfs.attributes(dir) then
    local made, message = lfs.mkdir(dir)
    if not made then options.raise('tensorboard', '%s: %s', dir, message) end
  end
  local path, clock = new_path(dir), opts.clock or now
  local file, message = io.open(path, 'wb')
  if not file then options.raise('tensorboard', '%s', message) end

  assert(file:write(event(clock(), 0, text(3, 'brain.Event:2'))))
  if opts.resume_step then assert(file:write(event(clock(), opts.resume_step + 1, SESSION_START))) end
  assert(file:flush())
  return setmetatable({ file = file, path = path, clock = clock }, Writer)
end

return { open = open, crc32c = crc32c }
