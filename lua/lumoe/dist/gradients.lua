--- Gradients summed, one norm, clipping: by where each parameter lies (placement.lua).
--
-- One rule for scale: losses are already divided by the counted targets of all ranks, so gradients are
-- summed, never averaged, over the ranks that hold the same elements of a parameter and saw other tokens.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local groups = require 'lumoe.dist.group'
local handle = require 'lumoe.handle'
local offload = require 'lumoe.dist.offload'
local placement = require 'lumoe.dist.placement'
local shard = require 'lumoe.dist.shard'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local gradients = {}

-- Each of the following in a scope, so that no handle of ours keeps a gradient; and parameters in an order that is
-- the same on every rank.

local function all_reduce(module)
  for _, p in ipairs(module:named_parameters()) do
    local t = p.tensor
    if t.requires_grad then
      if t.grad == nil then t.grad = tensor.zeros(t:shape_table()) end
      groups.all_reduce(t.grad, 'sum', placement.replicas(p))
    end
  end
end

--- Sums every gradient of a module over its replicas. A parameter that got none on this rank counts as
-- zeros, since it may have got one elsewhere.
---@param module lumoe.Module
function gradients.reduce_gradients(module)
  if module._sharded then return shard.reduce(module) end
  if groups.world_size() == 1 then return end
  autograd.scope(all_reduce, module)
end

local one = ffi.new 'double[1]'

-- Sum of squares of what this rank has of a gradient: in memory, or in a tier.
local function squares_of(p, t)
  if offload.of(p) then return offload.squares(p) or 0 end
  status.check(C.lm_optim_grad_sqsum(handle.pointer(t), one))
  return one[0]
end

-- Those of all that this rank counts, and the ranks to add them up over: the same for all parameters of a model.
local function all_squares(module)
  local squares, among = 0, nil
  for _, p in ipairs(module:named_parameters()) do
    if p.tensor.requires_grad then
      among = placement.mesh(p).tokens
      local chunk = shard.chunk(p.tensor)
      if placement.counts(p, chunk ~= nil) then squares = squares + squares_of(p, chunk or p.tensor) end
    end
  end
  return squares, among
end

--- The norm of all gradients of a module, each element counted once; call it after reduce_gradients.
-- All ranks get the same number.
---@param module lumoe.Module
---@return number
function gradients.grad_norm(module)
  local squares, among = autograd.scope(all_squares, module)
  return math.sqrt(groups.reduce_number(squares, 'sum', among))
end

local function scale(module, by)
  for _, p in ipairs(module:named_parameters()) do
    if offload.of(p) and p.tensor.requires_grad then
      status.argument("clip_grad_norm: the gradient of '%s' is offloaded; let the update do it: "
        .. 'optimizer:step { grad_scale = optim.clip_scale(dist.grad_norm(model), max) }', p.name)
    end
    local grad = p.tensor.requires_grad and (p.tensor.grad or shard.part(p.tensor).grad)
    if grad then grad:copy_(grad * by) end
  end
end

--- Scales all gradients so that their norm is at most max_norm. Returns the norm before.
function gradients.clip_grad_norm(module, max_norm)
  local norm = gradients.grad_norm(module)
  if norm > max_norm then autograd.scope(scale, module, max_norm / norm) end
  return norm
end

return gradients
