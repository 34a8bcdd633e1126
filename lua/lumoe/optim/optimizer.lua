--- What the optimizers share: parameters with their state, f32 masters of bf16 ones, saving.
--
-- Of a parameter that is divided between ranks (dist/shard.lua) an optimizer has only this rank's chunk,
-- a flat tensor; so have its state and its master.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local handle = require 'lumoe.handle'
local offloaded = require 'lumoe.optim.offloaded'
local placement = require 'lumoe.dist.placement'
local shard = require 'lumoe.dist.shard'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local optimizer = {}

---@class lumoe.Optimizer
local Optimizer = {}
Optimizer.__index = Optimizer

-- State outlives scopes and is booked as the optimizer's.
local function booked(make)
  local before = C.lm_memory_set_purpose(C.LM_MEM_OPTIMIZER)
  local ok, made = pcall(make)
  C.lm_memory_set_purpose(before)
  if not ok then error(made, 0) end
  return autograd.keep(made)
end

-- The part of a parameter that this rank updates: the whole of it, or its chunk.
local function part_of(kind, p, whole)
  local chunk = shard.chunk(p.tensor)
  if not chunk and placement.stage(p) > 0 and placement.replicas(p).size > 1 then
    status.argument("optim.%s: the mesh of '%s' asks for ZeRO stage %d: call dist.shard(model) first", kind, p.name,
      placement.stage(p))
  end
  local offload = placement.mesh(p).offload
  if offload == 'parameters' and not chunk then
    status.argument("optim.%s: the mesh of '%s' asks for offloaded parameters: call dist.shard(model) first", kind, p.name)
  end
  if offload and whole then
    status.argument("optim.%s: %s, but '%s' is offloaded; use AdamW or SGD", kind, whole, p.name)
  end
  if chunk and whole then
    status.argument("optim.%s: %s, but '%s' is divided between %d ranks; use AdamW or SGD, or zero.%s = 0", kind, whole,
      p.name, C.lm_shard_ranks(handle.pointer(p.tensor)), p.spec.group)
  end
  return autograd.keep(chunk or p.tensor)
end

-- Whether a part has a master beside it.
local function has_master(self, part) return part.dtype == 'bf16' and self.opts.masters ~= false end

-- What its state, but for a master, is kept in.
local function dtype_of_state(self) return self.opts.moments or 'f32' end

-- State that is in memory, for one part.
local function in_memory(self, part, slots)
  local state = {}
  for name, shape in pairs(slots) do
    state[name] = booked(function() return tensor.zeros(shape, { dtype = dtype_of_state(self) }) end)
  end
  if has_master(self, part) then
    state.master = booked(function()
      return autograd.no_grad(function() return part:detach():float() end)
    end)
  end
  return state
end

--- params: what `module:named_parameters()` gives. `slots(part)` names the state of one parameter: name ->
-- shape; `update(self, part, state, master, lr, grad_scale, p, rounding)` is the step, part being a parameter's tensor or
-- a flat part of it; whole: why the optimizer cannot do with parts, if so. State of a mesh with offload lies in a tier
-- (optim/offloaded.lua).
function optimizer.new(kind, params, opts, slots, update, whole)
  if type(params) ~= 'table' or type(params[1]) ~= 'table' or not params[1].tensor then
    status.argument('optim.%s: wants the list that module:named_parameters() gives', kind)
  end
  if opts.gradients and opts.gradients ~= 'f32' and opts.gradients ~= 'bf16' then
    status.argument("optim.%s: gradients are 'f32' or 'bf16', not '%s'", kind, tostring(opts.gradients))
  end
  local self = setmetatable({ kind = kind, params = params, opts = opts, update = update, steps = 0, state = {},
    parts = {}, offloaded = {}, roundings = {} }, Optimizer)
  local away = {}
  for _, p in ipairs(params) do
    local part = part_of(kind, p, whole)
    if opts.gradients then p.tensor.grad_dtype = opts.gradients end
    local shapes = slots(part)
    self.parts[p.name] = part
    if placement.mesh(p).offload then
      away[#away + 1] = { param = p, part = part, slots = shapes, dtype = dtype_of_state(self), master = has_master(self, part) }
    else self.state[p.name] = in_memory(self, part, shapes) end
  end
  self.offloaded = offloaded.new(self, away)
  return self
end

-- What was updated in chunks gets to the ranks that hold the same parameter.
local function publish(self)
  for _, p in ipairs(self.params) do status.check(C.lm_shard_updated(handle.pointer(p.tensor))) end
  status.check(C.lm_shard_settle())
end

--- How elements of a bf16 parameter without a master, and bf16 moments, are rounded in this step, from element `first` on
-- of the part that this rank updates; nil when nothing is rounded at random. Keyed by the parameter's name, the step and
-- the element's place in the whole.
function Optimizer:rounding(p, first)
  local part = self.parts[p.name]
  if dtype_of_state(self) == 'f32' and (part.dtype ~= 'bf16' or has_master(self, part)) then return nil end
  local r = self.roundings[p.name]
  if not r then
    r = { struct = ffi.new 'lm_rounding', site = 'optimizer ' .. p.name }
    local unit, blocks = placement.blocks(p.spec)
    if unit then
      r.blocks = autograd.keep(blocks) -- the struct does not hold it
      r.struct.unit, r.struct.blocks = unit, handle.pointer(blocks)
    end
    self.roundings[p.name] = r
  end
  r.struct.stream = C.lm_random_stream(r.site, self.steps, 1)
  r.struct.first = C.lm_shard_first(handle.pointer(p.tensor)) + first
  return r.struct
end

--- One step from the gradients. Options: lr (else the constructor's), grad_scale = 1.
function Optimizer:step(opts)
  opts = opts or {}
  self.steps = self.steps + 1
  local lr, scale = opts.lr or self.opts.lr, opts.grad_scale or 1
  for _, p in ipairs(self.params) do
    local state, part = self.state[p.name], self.parts[p.name]
    if (C.lm_shard_stage(handle.pointer(p.tensor)) > 0) ~= (part ~= p.tensor) then
      status.argument("optimizer: '%s' was divided, or put together, after the optimizer was made", p.name)
    end
    if state then
      status.check(self:update(handle.pointer(part), state, state.master and handle.pointer(state.master), lr, scale, p,
        self:rounding(p, 0)))
    end
  end
  self.offloaded:step(lr, scale)
  publish(self)
end

--- Gradients are dropped; the next backward makes them anew.
function Optimizer:zero_grad()
  for _, p in ipairs(self.params) do p.tensor.grad = nil end
end

--- name -> tensor, `optimizer.<parameter>.<slot>`, for checkpoints.
function Optimizer:tensors()
  local list = {}
  for name, state in pairs(self.state) do
    for slot, t in pairs(state) do list[('optimizer.%s.%s'):format(name, slot)] = t end
  end
  return list
end

return optimizer
