--- A model whose parameters, gradients and optimizer state are divided between its replicas (ZeRO), as
-- each parameter's mesh says, and whose gradients travel during backward (runtime/shard.h).
--
--     local model = dist.shard(Model(opts))                   -- before the optimizer is made
--     local optimizer = optim.AdamW(model:named_parameters(), opts)
--     ...
--     loss:backward { last = micro == micro_batches }
--     dist.reduce_gradients(model)
--     optimizer:step { grad_scale = optim.clip_scale(dist.grad_norm(model), 1) }
--     optimizer:zero_grad()
--
-- `last` says that no more will come: gradients that are not divided may then leave for the other ranks while
-- backward goes on (without it they leave in reduce_gradients). Divided ones leave in every backward.
--
-- A unit is what runs at one go: an element of a list of modules (a Transformer layer), a module with
-- experts' parameters, and the model for all that is in none of those. Calling a unit, or a module in it
-- that has parameters, enters its region: at stage 3 its parameters are then whole. All of a unit's
-- methods enter it, and gather at the first parameter that they use.
--
-- A parameter in two places belongs to the innermost unit around both.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local handle = require 'lumoe.handle'
local nn_module = require 'lumoe.nn.module'
local offload = require 'lumoe.dist.offload'
local placement = require 'lumoe.dist.placement'
local status = require 'lumoe.status'
local Tier = require 'lumoe.dist.tier'

local shard = {}
local check, pointer = status.check, handle.pointer

---@class lumoe.Unit
---@field path string
---@field pointer cdata
---@field parameters table[]

-- ---- which parameter is in which unit ------------------------------------------------------

local function has_experts(m)
  for _, spec in pairs(m._parameters) do
    if spec.group == 'expert' then return true end
  end
  return false
end

local function is_unit(m, path) return path:match '[^.]*$':match '^%d+$' ~= nil or has_experts(m) end

local function parent(path) return path:match '^(.*)%.' or '' end

-- path of a module -> path of the unit that it is in.
local function unit_paths(modules)
  local of = {}
  for _, entry in ipairs(modules) do
    local path, m = entry[1], entry[2]
    if path == '' or is_unit(m, path) then of[path] = path
    else
      local up = parent(path) -- not every part of a path is a module: a plain table of them
      while not of[up] do up = parent(up) end
      of[path] = of[up]
    end
  end
  return of
end

local function common(a, b, of)
  local inside = {}
  while true do
    inside[a] = true
    if a == '' then break end
    a = parent(a)
    while not of[a] do a = parent(a) end
    a = of[a]
  end
  while not inside[b] do
    b = parent(b)
    while not of[b] do b = parent(b) end
    b = of[b]
  end
  return b
end

-- id of a parameter's tensor -> the innermost unit around all modules that have it.
local function homes(modules, of)
  local home = {}
  for _, entry in ipairs(modules) do
    local path, m = entry[1], entry[2]
    for key in pairs(m._parameters) do
      local id = m[key]:id()
      home[id] = home[id] and common(home[id], of[path], of) or of[path]
    end
  end
  return home
end

-- ---- regions -------------------------------------------------------------------------------

local function leave(ok, ...)
  check(C.lm_region_leave())
  if not ok then error((...), 0) end
  return ...
end

local function within(unit, eager, f, ...)
  if C.lm_unit_inside(unit.pointer) > 0 then return f(...) end
  check(C.lm_region_enter(unit.pointer, eager))
  return leave(pcall(f, ...))
end

-- The instance's own method goes before its class's.
local function wrap(m, name, unit, eager)
  local f = m[name]
  m._unwrapped = m._unwrapped or {}
  if m._unwrapped[name] == nil then m._unwrapped[name] = rawget(m, name) or false end
  m[name] = function(...) return within(unit, eager, f, ...) end
end

local function unwrap(m)
  for name, own in pairs(m._unwrapped or {}) do m[name] = own or nil end
  m._unwrapped = nil
end

local OWN = { init = true, attach = true }

-- Parameters' modules enter the units of their parameters; a unit's module the unit, in all its methods.
local function wrap_all(modules, units, home)
  for _, entry in ipairs(modules) do
    local path, m = entry[1], entry[2]
    local entered = {}
    for key in pairs(m._parameters) do
      local unit = units[home[m[key]:id()]]
      if not entered[unit] and unit.path ~= path then
        entered[unit] = true
        wrap(m, 'forward', unit, 1)
      end
    end
    local unit = units[path]
    if unit then
      for name, f in pairs(m._class) do
        if type(f) == 'function' and not OWN[name] and name:sub(1, 2) ~= '__' then
          wrap(m, name, unit, name == 'forward' and 1 or 0)
        end
      end
    end
  end
end

-- ---- the model -----------------------------------------------------------------------------

local function new_unit(path)
  local out = ffi.new 'lm_unit *[1]'
  check(C.lm_unit_new(path == '' and 'model' or path, out))
  return { path = path, pointer = ffi.gc(out[0], C.lm_unit_release), parameters = {} }
end

-- What is divided is never alone: with one replica there is nobody to divide with.
local function stage_of(p) return offload.stage(p, placement.replicas(p).size > 1 and placement.stage(p) or 0) end

--- Divides a model's parameters as their meshes say (zero = { dense =, expert = }), moves what they say to the
-- second tier (offload =), and lets its gradients travel during backward. Call it when dtype and weights are final (those
-- of nn.later are drawn here), and before the optimizer is made.
---@param model lumoe.Module
---@param mesh lumoe.Mesh?  of the parameters that name none
---@return lumoe.Module  the model
function shard.shard(model, mesh)
  if model._sharded then status.argument 'dist.shard: the model is sharded already' end
  for _, p in ipairs(mesh and model:named_parameters() or {}) do p.spec.mesh = p.spec.mesh or mesh end
  local modules, parameters = model:named_modules(), model:named_parameters()
  local of = unit_paths(modules)
  local home, units, list = homes(modules, of), {}, {}
  local open_tier = Tier.opener()
  for _, p in ipairs(parameters) do
    local path = home[p.tensor:id()]
    if not units[path] then
      units[path] = new_unit(path)
      list[#list + 1] = units[path]
    end
    nn_module.draw(p)
    check(C.lm_unit_add(units[path].pointer, pointer(p.tensor), p.name, placement.replicas(p).pointer, stage_of(p)))
    offload.lodge(p, open_tier)
    table.insert(units[path].parameters, p)
  end
  wrap_all(modules, units, home)
  local array = ffi.new('lm_unit *[?]', math.max(#list, 1))
  for i, unit in ipairs(list) do array[i - 1] = unit.pointer end
  model._sharded = { units = list, array = array }
  return model
end

--- Undoes it: every parameter is whole on every replica. An optimizer made before is of no more use.
function shard.unshard(model)
  local sharded = model._sharded
  if not sharded then return model end
  for _, unit in ipairs(sharded.units) do
    check(C.lm_unit_dissolve(unit.pointer))
    for _, p in ipairs(unit.parameters) do offload.leave(p) end
  end
  for _, entry in ipairs(model:named_modules()) do unwrap(entry[2]) end
  model._sharded = nil
  return model
end

--- f(...) with all parameters of the model whole; what f writes to them stays. All ranks call it.
function shard.gathered(model, f, ...)
  local function enter(i, ...)
    local unit = model._sharded and model._sharded.units[i]
    if not unit then return f(...) end
    return within(unit, 1, enter, i + 1, ...)
  end
  return enter(1, ...)
end

--- Sends the gradients that are still here, and waits for all. For dist.reduce_gradients.
function shard.reduce(model)
  for _, p in ipairs(model:named_parameters()) do
    if p.tensor.requires_grad and shard.stage(p.tensor) < 0 then
      status.argument("reduce_gradients: parameter '%s' was made after dist.shard; dist.unshard, then dist.shard again", p.name)
    end
  end
  check(C.lm_shard_reduce(model._sharded.array, #model._sharded.units))
end

-- ---- chunks --------------------------------------------------------------------------------

local out = ffi.new 'lm_tensor *[1]'

--- The part of a parameter that this rank's optimizer updates, flat: a view of it at stages 1 and 2, all that
-- stays of it at 3. nil when it is not divided. Its .grad is the part of the gradient.
---@param t lumoe.Tensor
function shard.chunk(t)
  check(C.lm_shard_chunk(pointer(t, 'shard.chunk', 'parameter'), out))
  return out[0] ~= nil and handle.own(out[0]) or nil
end

--- The stage at which it is under its unit; -1: it is under none.
function shard.stage(t) return C.lm_shard_stage(pointer(t)) end

--- { first, count } of the chunk in the parameter's flattened local elements; nil when it is not divided.
function shard.range(t)
  local chunk = shard.chunk(t)
  return chunk and { C.lm_shard_first(pointer(t)), chunk:numel() }
end

--- What the optimizer of this rank works on: the chunk, or the whole parameter.
function shard.part(t) return shard.chunk(t) or t end

return shard
