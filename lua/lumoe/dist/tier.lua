--- A second place for bytes, slower than memory and much larger (runtime/tier.h): today a file without a name.
--
--     local tier = Tier.open '/scratch'
--     local at = tier:reserve(4 * t:numel())
--     tier:write(at, t);  tier:wait()      -- begun, then done; t must not change in between
--     tier:read(at, t);   tier:wait()
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local status = require 'lumoe.status'

local check = status.check

---@class lumoe.Tier
---@field dir string
local Tier = {}
Tier.__index = Tier

--- Where tiers are when nobody says.
function Tier.default_dir() return os.getenv 'TMPDIR' or '/tmp' end

local out = ffi.new 'lm_tier *[1]'

--- mapped: bytes move through a mapping of the file (runtime/tier/file.c).
---@param dir string?
---@param mapped boolean?
---@return lumoe.Tier
function Tier.open(dir, mapped)
  dir = dir or Tier.default_dir()
  check(C.lm_tier_file(dir, mapped and 1 or 0, out))
  return setmetatable({ dir = dir, pointer = ffi.gc(out[0], C.lm_tier_release) }, Tier)
end

--- Tiers by directory, each opened when it is first asked for: of one model and its optimizer, so that their
-- space is free again when they are gone.
---@return fun(dir: string?, mapped: boolean?): lumoe.Tier
function Tier.opener()
  local tiers = { [false] = {}, [true] = {} }
  return function(dir, mapped)
    local of = tiers[mapped == true]
    dir = dir or Tier.default_dir()
    of[dir] = of[dir] or Tier.open(dir, mapped)
    return of[dir]
  end
end

local place = ffi.new 'int64_t[1]'

--- Space for so many bytes more; gives where it is.
---@return number
function Tier:reserve(bytes)
  check(C.lm_tier_reserve(self.pointer, bytes, place))
  return tonumber(place[0])
end

local function bytes_of(t, name)
  if not t:is_contiguous() then status.argument('%s: the tensor must be contiguous', name) end
  return t:data_ptr(), t:numel() * C.lm_dtype_size(C['LM_' .. t.dtype:upper()])
end

--- Begins to write all of a contiguous tensor. Returns its number, for `wait`.
function Tier:write(at, t)
  local data, bytes = bytes_of(t, 'tier:write')
  check(C.lm_tier_write(self.pointer, at, data, bytes))
  return C.lm_tier_begun(self.pointer)
end

--- Begins to fill all of a contiguous tensor.
function Tier:read(at, t)
  local data, bytes = bytes_of(t, 'tier:read')
  check(C.lm_tier_read(self.pointer, at, data, bytes))
  return C.lm_tier_begun(self.pointer)
end

--- Returns when what has this number, and all before it, is done; without one: everything.
function Tier:wait(number) check(C.lm_tier_wait(self.pointer, number or math.huge)) end

--- Bytes: { reserved =, written =, read = }.
function Tier:bytes()
  return { reserved = C.lm_tier_reserved(self.pointer), written = C.lm_tier_bytes_written(self.pointer),
    read = C.lm_tier_bytes_read(self.pointer) }
end

--- Gives the space back, unless something in C still lives there.
function Tier:close()
  if self.pointer == nil then return end
  C.lm_tier_release(ffi.gc(self.pointer, nil))
  self.pointer = nil
end

return Tier
