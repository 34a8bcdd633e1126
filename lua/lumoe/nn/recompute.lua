--- Activation checkpointing: forget what a function computed, compute it again when backward needs it.
--
--     local y, aux = nn.recompute(layer, x, tags)     -- the same as layer(x, tags), with less memory
--
-- Forward keeps the arguments alone. Backward calls the function again, with the random streams of the
-- first time, and goes through what that recorded. The arguments' tensors (also those in plain tables)
-- and parameters get their gradients; a tensor that the function finds elsewhere, as an upvalue, must
-- not need one.
--
-- Some things must happen once: a route that was decided, a token that was counted. `recompute.once`
-- hands the first time's value back the second time, in order; so an MoE layer keeps its plan, and a
-- route cannot flip between forward and backward.
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local random = require 'lumoe.random'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local recompute = {}

-- ---- what happens once ---------------------------------------------------------------------

local frame -- the function being recorded or repeated: { memory, at, repeating, outer }

-- A copy of a value with `f` done to its tensors, also those in plain tables.
local function map(value, f)
  if tensor.is_tensor(value) then return f(value) end
  if type(value) ~= 'table' or getmetatable(value) ~= nil then return value end
  local copy = {}
  for key, inner in pairs(value) do copy[key] = map(inner, f) end
  return copy
end

-- An alias outside of all scopes: it shares the bytes and carries no gradient path.
local function kept(t) return autograd.keep(t:detach()) end
local function drop(t) C.lm_handle_drop(t) end

local obtain

-- Remembers the first of the results.
local function remembered(from, name, value, ...)
  from.memory[#from.memory + 1] = { name = name, value = map(value, kept) }
  return value, ...
end

function obtain(from, name, f, ...)
  if not from then return f(...) end
  if from.repeating then
    from.at = from.at + 1
    local entry = from.memory[from.at]
    if not entry or entry.name ~= name then
      status.argument("recompute: the function took another way when it was computed again: '%s' instead of '%s'", name,
        entry and entry.name or 'its end')
    end
    return entry.value
  end
  return remembered(from, name, obtain(from.outer, name, f, ...))
end

--- f(...)'s value; inside a repetition, what f returned the first time. `name` finds functions that do
-- not repeat themselves. Tensors in the value carry no gradient. What else f returns is there the first time alone.
function recompute.once(name, f, ...) return obtain(frame, name, f, ...) end

--- Whether a repetition is going on: what is counted has been counted.
function recompute.repeating()
  local at = frame
  while at and not at.repeating do at = at.outer end
  return at ~= nil
end

local function left(ok, ...)
  frame = frame.outer
  if not ok then error((...), 0) end
  return ...
end

-- Calls f within a frame, in a scope of its own: only results stay.
local function within(memory, repeating, f, arguments)
  frame = { memory = memory, at = 0, repeating = repeating, outer = frame }
  return left(pcall(autograd.scope, f, unpack(arguments, 1, arguments.n)))
end

-- ---- forward and backward ------------------------------------------------------------------

local function pack(...) return { n = select('#', ...), ... } end

local function recording()
  local on = C.lm_grad_set_enabled(1)
  C.lm_grad_set_enabled(on)
  return on == 1
end

local FLOAT = { f32 = true, bf16 = true }

-- Goes backward from several tensors at once.
local function backward(roots, grads)
  if #roots == 0 then return end
  autograd.custom {
    name = 'recompute',
    forward = function() return tensor.zeros({}) end,
    backward = function() return unpack(grads) end,
  }(unpack(roots)):backward()
end

-- What the function returned again, and the leaves that stand for its arguments.
local function repeated(call)
  local leaves, before = {}, random.state()
  local arguments = map(call.arguments, function(t)
    local alias = t:detach()
    if call.wanted[t:id()] then
      alias.requires_grad = true
      leaves[call.wanted[t:id()]] = alias
    end
    return alias
  end)
  random.restore(call.random)
  local results = pack(pcall(within, call.memory, true, call.f, arguments))
  random.restore(before)
  if not results[1] then error(results[2], 0) end
  return results, leaves
end

-- The gradients of the call's inputs, from those of its results. Backward has switched recording off
-- around this, and will set it back.
local function gradients(call, ...)
  C.lm_grad_set_enabled(1)
  local results, leaves = repeated(call)
  local roots, grads = {}, {}
  for i, place in ipairs(call.places) do
    local y, dy = results[place + 1], select(i, ...)
    if dy ~= nil and y.requires_grad then roots[#roots + 1], grads[#grads + 1] = y, dy end
  end
  backward(roots, grads)
  local given = {}
  for i = 1, call.inputs do given[i] = leaves[i] and leaves[i].grad end
  return unpack(given, 1, call.inputs)
end

-- Keeps the arguments; returns the tensors among them that want a gradient.
local function hold(call, ...)
  local inputs = {}
  call.arguments = map(pack(...), function(t)
    local alias = kept(t)
    if t.requires_grad then
      inputs[#inputs + 1] = t
      call.wanted[alias:id()] = #inputs
    end
    return alias
  end)
  -- Parameters are no arguments: without any, a leaf of our own asks for the way back.
  if #inputs == 0 then inputs[1] = tensor.zeros({}, { requires_grad = true }) end
  call.inputs = #inputs
  return inputs
end

local function release(call)
  map(call.arguments, drop)
  for _, entry in ipairs(call.memory) do map(entry.value, drop) end
end

--- f(...) without keeping what it computes. Where nothing is recorded anyway, a plain call.
local function run(_, f, ...)
  if not recording() then return f(...) end
  local call = { f = f, memory = {}, wanted = {}, places = {}, random = random.state() }
  local inputs, results = hold(call, ...), nil
  local outputs = { autograd.custom {
    name = 'recompute',
    forward = function()
      results = pack(within(call.memory, false, f, call.arguments))
      local floats = {}
      for i = 1, results.n do
        if tensor.is_tensor(results[i]) and FLOAT[results[i].dtype] then
          floats[#floats + 1], call.places[#call.places + 1] = results[i], i
        end
      end
      return unpack(floats)
    end,
    backward = function(_, ...) return autograd.scope(gradients, call, ...) end,
    release = function() release(call) end,
  }(unpack(inputs)) }
  for i, place in ipairs(call.places) do results[place] = outputs[i] end
  return unpack(results, 1, results.n)
end

return setmetatable(recompute, { __call = run })
