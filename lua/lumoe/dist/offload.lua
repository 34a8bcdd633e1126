--- What dist.shard does for meshes with offload: gradients, and parameters too, get a place in a tier
-- (runtime/offload.h). The optimizer's state follows when the optimizer is made (optim/offloaded.lua).
--
--   offload = 'optimizer'   a rank keeps its parameters, and of gradients those of the unit that backward is in
--   offload = 'parameters'  it keeps neither: a unit's parameters are read when it runs, the next one's ahead
--
-- Where they are: `offload = { to = 'parameters', dir = '/scratch' }`, else the directory for temporary files; how bytes get
-- there: `mapped = true` through a mapping of the file.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local handle = require 'lumoe.handle'
local placement = require 'lumoe.dist.placement'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local offload = {}

--- The stage at which a parameter is put under its unit: what leaves memory leaves by the way of ZeRO's,
-- also where there is no other replica.
---@param stage integer  that ZeRO asks for
function offload.stage(p, stage)
  local what = placement.mesh(p).offload
  return math.max(stage, what == 'parameters' and 3 or what == 'optimizer' and 2 or 0)
end

---@class lumoe.Lodging
---@field tier lumoe.Tier
---@field count integer     elements of this rank's part
---@field gradient integer  where this rank's part of the gradient is, in f32
---@field chunk integer?    where its part of the parameter is; nil: in memory

local out, chunk = ffi.new 'lm_offload *[1]', ffi.new 'lm_tensor *[1]'

--- Called by dist.shard for each parameter, once it is under its unit. open: the model's Tier.opener().
function offload.lodge(p, open)
  local mesh = placement.mesh(p)
  if not mesh.offload then return end
  status.check(C.lm_shard_chunk(handle.pointer(p.tensor), chunk))
  local count, size = C.lm_tensor_numel(chunk[0]), C.lm_dtype_size(C.lm_tensor_dtype(chunk[0]))
  C.lm_tensor_release(chunk[0])
  local tier = open(mesh.tier.dir, mesh.tier.mapped)
  local gradient = tier:reserve(4 * count)
  local place = mesh.offload == 'parameters' and tier:reserve(size * count) or nil
  status.check(C.lm_offload_new(handle.pointer(p.tensor), tier.pointer, gradient, place or -1, out))
  p.spec.lodging = { tier = tier, count = count, gradient = gradient, chunk = place,
    pointer = ffi.gc(out[0], C.lm_offload_release) }
end

--- Called when a parameter is under no unit any more: it is in memory.
function offload.leave(p)
  local lodging = p.spec.lodging
  p.spec.lodging = nil
  if lodging then C.lm_offload_release(ffi.gc(lodging.pointer, nil)) end
end

--- The places of a parameter; nil when it is not offloaded.
---@return lumoe.Lodging?
function offload.of(p) return p.spec.lodging end

local squares = ffi.new 'double[1]'

--- The sum of squares of an offloaded gradient; nil when there is none.
function offload.squares(p)
  if C.lm_offload_gradient(p.spec.lodging.pointer, squares) == 0 then return nil end
  return squares[0]
end

--- A copy of this rank's part of an offloaded gradient, flat; nil when there is none.
function offload.gradient(p)
  local lodging = p.spec.lodging
  if not offload.squares(p) then return nil end
  local t = tensor.empty(lodging.count)
  lodging.tier:wait(lodging.tier:read(lodging.gradient, t))
  return t
end

--- This rank's part of a parameter that is offloaded itself: a copy, flat; and the way back.
function offload.read(p)
  local lodging, t = p.spec.lodging, tensor.empty(p.spec.lodging.count, { dtype = p.tensor.dtype })
  lodging.tier:wait(lodging.tier:read(lodging.chunk, t))
  return t
end
function offload.write(p, t)
  local lodging = p.spec.lodging
  if t.dtype ~= p.tensor.dtype or t:numel() ~= lodging.count then
    status.argument("offload: '%s' has %d elements of %s here, not %s", p.name, lodging.count, p.tensor.dtype,
      tensor.describe(t))
  end
  status.check(C.lm_offload_discard())
  lodging.tier:wait(lodging.tier:write(lodging.chunk, t:contiguous()))
end

return offload
