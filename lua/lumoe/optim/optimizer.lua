--- What the optimizers share: parameters with their state, f32 masters of bf16 ones, saving.
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local handle = require 'lumoe.handle'
local offloaded = require 'lumoe.optim.offloaded'
local placement = require 'lumoe.dist.placement'
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

-- State that is in memory, for one parameter.
local function in_memory(p, slots)
  local state = {}
  for name, shape in pairs(slots) do
    state[name] = booked(function() return tensor.zeros(shape) end)
  end
  if p.tensor.dtype == 'bf16' then
    state.master = booked(function()
      return autograd.no_grad(function() return p.tensor:detach():float() end)
    end)
  end
  return state
end

--- params: what `module:named_parameters()` gives. `slots(p)` names the state of one parameter: name ->
-- shape; `update(self, part, state, master, lr, grad_scale, p)` is the step, part being a parameter's tensor or a
-- flat part of it. State of a mesh with offload lies in a tier (optim/offloaded.lua).
function optimizer.new(kind, params, opts, slots, update)
  if type(params) ~= 'table' or type(params[1]) ~= 'table' or not params[1].tensor then
    status.argument('optim.%s: wants the list that module:named_parameters() gives', kind)
  end
  local self = setmetatable({ kind = kind, params = params, opts = opts, update = update, steps = 0, state = {},
    offloaded = {} }, Optimizer)
  local away = {}
  for _, p in ipairs(params) do
    placement.check_supported(p)
    local shapes = slots(p.tensor)
    if placement.mesh(p).offload then away[#away + 1] = { param = p, slots = shapes }
    else self.state[p.name] = in_memory(p, shapes) end
  end
  self.offloaded = offloaded.new(self, away)
  return self
end

--- One step from the gradients. Options: lr (else the constructor's), grad_scale = 1.
function Optimizer:step(opts)
  opts = opts or {}
  self.steps = self.steps + 1
  local lr, scale = opts.lr or self.opts.lr, opts.grad_scale or 1
  for _, p in ipairs(self.params) do
    local state = self.state[p.name]
    if state then
      status.check(self:update(handle.pointer(p.tensor), state, state.master and handle.pointer(state.master), lr, scale,
        p))
    end
  end
  self.offloaded:step(lr, scale)
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
