--- The part of an optimizer whose state lies in a tier: which slots of which parameters, and one step of them.
-- Parameters of one precision share a stream (optim/stream.lua): bf16 ones have a master there (unless the optimizer
-- makes none), f32 ones none. Masters are f32, the other slots of the dtype that the optimizer says.
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local handle = require 'lumoe.handle'
local offload = require 'lumoe.dist.offload'
local placement = require 'lumoe.dist.placement'
local status = require 'lumoe.status'
local Stream = require 'lumoe.optim.stream'
local tensor = require 'lumoe.tensor'
local Tier = require 'lumoe.dist.tier'

---@class lumoe.Offloaded
local Offloaded = {}
Offloaded.__index = Offloaded

local function slots_of(item)
  local slots = {}
  for name in pairs(item.slots) do slots[name] = item.dtype end
  if item.master then slots.master = 'f32' end
  return slots
end

-- A piece of the part that this rank updates, wherever it is.
local function piece_of(entry, first, count)
  if not entry.parameter then return entry.part:detach():reshape(-1):narrow(0, first, count) end
  local t = tensor.empty(count, { dtype = entry.dtype })
  local tier = entry.stream.tier
  tier:wait(tier:read(entry.parameter + C.lm_dtype_size(C['LM_' .. entry.dtype:upper()]) * first, t))
  return t
end

-- A master starts as the parameter is.
local function write_master(entry)
  local stream = entry.stream
  stream:pieces(entry, function(first, count)
    autograd.scope(autograd.no_grad, function()
      stream.tier:wait(stream:write('master', entry, piece_of(entry, first, count):float(), first))
    end)
  end)
end

-- The entry of a parameter in a stream of those with the same slots, in the tier that has its gradient.
local function enter(self, item)
  local p, dtype = item.param, item.part.dtype
  local where, lodging = placement.mesh(p).tier, offload.of(p)
  local tier = lodging and lodging.tier or self.open_tier(where.dir, where.mapped)
  local key = table.concat({ tostring(tier), dtype, where.bucket or '' }, ' ')
  local stream = self.streams[key]
  if not stream then
    stream = Stream.new(tier, slots_of(item), where.bucket)
    self.streams[key], self.streams[#self.streams + 1] = stream, stream
  end
  local entry = stream:add(item.part:numel())
  entry.param, entry.part, entry.dtype, entry.stream = p, item.part, dtype, stream
  if lodging then entry.lodging, entry.gradient, entry.parameter = lodging, lodging.gradient, lodging.chunk end
  self.entries[p.name] = entry
end

--- items: { param = entry of named_parameters(), part = what of it this rank updates, slots = name -> shape, dtype = of
-- those, master = whether it has one }: state that is one number for each element. It starts as zeros, masters as the parameters are.
function Offloaded.new(optimizer, items)
  local self = setmetatable({ optimizer = optimizer, streams = {}, entries = {}, open_tier = Tier.opener() }, Offloaded)
  for _, item in ipairs(items) do enter(self, item) end
  for _, stream in ipairs(self.streams) do
    stream:reserve()
    for _, entry in ipairs(stream.entries) do
      if stream.base.master then write_master(entry) end
    end
  end
  return self
end

local function has_gradient(entry)
  if entry.lodging ~= offload.of(entry.param) then
    status.argument("optimizer: '%s' was offloaded, or brought back, after the optimizer was made", entry.param.name)
  end
  if entry.gradient then return offload.squares(entry.param) ~= nil end
  return entry.part.grad ~= nil
end

local function update(stream, optimizer, lr, scale)
  stream:update(has_gradient, function(entry, first, count, state)
    local part = state.parameter or piece_of(entry, first, count)
    part.grad = state.gradient or entry.part.grad:reshape(-1):narrow(0, first, count)
    local master = state.master and handle.pointer(state.master)
    status.check(optimizer:update(handle.pointer(part), state, master, lr, scale, entry.param,
      optimizer:rounding(entry.param, first)))
  end)
end

--- The update of every parameter that has a gradient.
function Offloaded:step(lr, scale)
  if #self.streams > 0 then status.check(C.lm_offload_discard()) end
  for _, stream in ipairs(self.streams) do update(stream, self.optimizer, lr, scale) end
end

--- Names of a parameter's slots, sorted, and the dtype of each; nil when its state is in memory.
function Offloaded:slots(name)
  local entry = self.entries[name]
  if entry then return entry.stream.slots, entry.stream.dtype end
end

--- A copy of a slot of the part that this rank updates, in its shape; and the way back.
function Offloaded:read(name, slot)
  local entry = self.entries[name]
  local t = tensor.empty(entry.part:shape_table(), { dtype = entry.stream.dtype[slot] })
  entry.stream.tier:wait(entry.stream:read(slot, entry, t))
  return t
end
function Offloaded:write(name, slot, t)
  local entry = self.entries[name]
  if t:numel() ~= entry.count then
    status.argument("optimizer: '%s' of '%s' has %d elements here, not %s", slot, name, entry.count, tensor.describe(t))
  end
  entry.stream.tier:wait(entry.stream:write(slot, entry, t:to(entry.stream.dtype[slot]):contiguous()))
end

return Offloaded
