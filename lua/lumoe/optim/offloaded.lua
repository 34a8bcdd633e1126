--- The part of an optimizer whose state lies in a tier: which slots of which parameters, and one step of them.
-- Parameters of one precision share a stream (optim/stream.lua): bf16 ones have a master there, f32 ones none.
local autograd = require 'lumoe.autograd'
local handle = require 'lumoe.handle'
local placement = require 'lumoe.dist.placement'
local status = require 'lumoe.status'
local Stream = require 'lumoe.optim.stream'
local tensor = require 'lumoe.tensor'
local Tier = require 'lumoe.dist.tier'

---@class lumoe.Offloaded
local Offloaded = {}
Offloaded.__index = Offloaded

-- State of the parameter's shape can be cut anywhere; Adafactor's cannot.
local function slot_names(self, item)
  local names = {}
  for name, shape in pairs(item.slots) do
    local n = 1
    for _, size in ipairs(shape) do n = n * size end
    if n ~= item.part:numel() or #shape ~= item.part:dim() then
      status.argument("optim.%s: its state is not one number for each element, so it cannot be offloaded; '%s' asks for it",
        self.optimizer.kind, item.param.name)
    end
    names[#names + 1] = name
  end
  if item.param.tensor.dtype == 'bf16' then names[#names + 1] = 'master' end
  return names
end

local function write_master(stream, entry, t)
  local flat = t:detach():reshape(-1)
  stream:pieces(entry, function(first, count)
    autograd.scope(autograd.no_grad, function()
      stream.tier:wait(stream:write('master', entry, flat:narrow(0, first, count):float():contiguous(), first))
    end)
  end)
end

--- items: { param = entry of named_parameters(), part = what of it this rank updates, slots = name -> shape }. State starts as zeros, masters as
-- the parameters are.
function Offloaded.new(optimizer, items)
  local self = setmetatable({ optimizer = optimizer, streams = {}, entries = {} }, Offloaded)
  for _, item in ipairs(items) do
    local p = item.param
    local names = slot_names(self, item)
    local where = placement.mesh(p).tier
    local key = table.concat({ p.tensor.dtype, where.dir or '', where.bucket or '' }, ' ')
    local stream = self.streams[key]
    if not stream then
      names[#names + 1] = 'gradient'
      stream = Stream.new(Tier.of(where.dir), names, where.bucket)
      self.streams[key], self.streams[#self.streams + 1] = stream, stream
    end
    local entry = stream:add(item.part:numel())
    entry.param, entry.part, entry.stream, self.entries[p.name] = p, item.part, stream, entry
  end
  for _, stream in ipairs(self.streams) do
    stream:reserve()
    for _, entry in ipairs(stream.entries) do
      if stream.base.master then write_master(stream, entry, entry.part) end
    end
  end
  return self
end

--- The update of every parameter that has a gradient.
function Offloaded:step(lr, scale)
  for _, stream in ipairs(self.streams) do
    stream:update(function(entry) return entry.part.grad ~= nil end, false, function(entry, first, count, state)
      local whole = entry.part
      local part = whole:detach():reshape(-1):narrow(0, first, count)
      part.grad = whole.grad:reshape(-1):narrow(0, first, count)
      local master = state.master and handle.pointer(state.master)
      status.check(self.optimizer:update(handle.pointer(part), state, master, lr, scale, entry.param))
    end)
  end
end

--- Names of a parameter's slots, sorted; nil when its state is in memory.
function Offloaded:slots(name)
  local entry, list = self.entries[name], {}
  if not entry then return nil end
  for _, slot in ipairs(entry.stream.slots) do
    if slot ~= 'gradient' then list[#list + 1] = slot end
  end
  return list
end

--- A copy of a slot of a parameter's state, in its shape; and the way back.
function Offloaded:read(name, slot)
  local entry = self.entries[name]
  local t = tensor.empty(entry.part:shape_table())
  entry.stream.tier:wait(entry.stream:read(slot, entry, t))
  return t
end
function Offloaded:write(name, slot, t)
  local entry = self.entries[name]
  entry.stream.tier:wait(entry.stream:write(slot, entry, t:float():contiguous()))
end

return Offloaded
