--- Gradients from Lua: backward, no_grad, and differentiable functions written in Lua.
-- C never calls Lua: when the walk reaches a custom function it stops and says so (runtime/autograd.h).
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local handle = require 'lumoe.handle'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local autograd = {}
local pointer, own, check = handle.pointer, handle.own, status.check

local pending = {} -- id -> what a recorded custom function needs for its backward
local next_id = 1
local out, recorded = ffi.new 'lm_tensor *[1]', ffi.new 'int[1]'

local function forget_freed()
  local id = C.lm_custom_freed()
  while id ~= 0 do
    local node = pending[id]
    pending[id] = nil
    if node and node.release then node.release(node.context) end
    id = C.lm_custom_freed()
  end
end

local function check_callable(f, op)
  if type(f) == 'function' or (type(f) == 'table' and getmetatable(f) and getmetatable(f).__call) then return end
  status.argument('%s: wants a function, not %s', op, type(f) == 'nil' and 'nil' or 'a ' .. type(f))
end

-- An error as it is, for xpcall.
local function unchanged(message) return message end

local function recorded_again(before, ok, ...)
  C.lm_grad_set_enabled(before)
  if not ok then error((...), 0) end
  return ...
end

--- Runs f(...) without recording; returns what it returns.
function autograd.no_grad(f, ...)
  check_callable(f, 'no_grad')
  return recorded_again(C.lm_grad_set_enabled(0), xpcall(f, unchanged, ...))
end

-- What a custom function's backward returned, a gradient for each input, to the inputs that want one.
local function give(node, ...)
  for i = node.inputs + 1, select('#', ...) do
    if select(i, ...) ~= nil then
      status.argument('%s backward: gradient %d, but forward had only %d tensor%s', node.name, i, node.inputs,
        node.inputs == 1 and '' or 's')
    end
  end
  for i = 1, math.min(node.inputs, select('#', ...)) do
    local grad = select(i, ...)
    if grad ~= nil and C.lm_backward_custom_wants(i - 1) == 1 then
      check(C.lm_backward_custom_give(i - 1, pointer(grad, node.name .. ' backward', 'gradient ' .. i)))
    end
  end
end

-- The custom function that is due: its outputs' gradients in, its inputs' out.
local function run_custom()
  local node = pending[C.lm_backward_custom()]
  local grads = {}
  for i = 1, node.outputs do
    check(C.lm_backward_custom_grad(i - 1, out))
    grads[i] = out[0] ~= nil and own(out[0]) or nil
  end
  give(node, autograd.no_grad(node.backward, node.context, unpack(grads, 1, node.outputs)))
end

--- Gradients of `root` (one element, unless `grad` is given) into the leaves' .grad, which accumulate.
-- Options: grad = tensor of root's shape, retain_graph = false; last = true in a step's last backward: a
-- sharded model's gradients may then leave for the other ranks as soon as they are complete (dist/shard.lua).
function tensor.methods.backward(root, opts)
  opts = tensor.options(opts, { grad = true, retain_graph = true, last = true }, 'backward')
  local flags = (opts.retain_graph and C.LM_BACKWARD_RETAIN or 0) + (opts.last and C.LM_BACKWARD_LAST or 0)
  check(C.lm_backward_begin(pointer(root, 'backward', 'self'),
    opts.grad ~= nil and pointer(opts.grad, 'backward', 'grad') or nil, flags))
  local st = C.lm_backward_next()
  while st == 1 do
    forget_freed()
    local ok, message = pcall(run_custom)
    if not ok then
      C.lm_backward_cancel()
      error(message, 0)
    end
    st = C.lm_backward_next()
  end
  forget_freed()
  check(st)
end

--- A differentiable function with its own backward.
--
--     local cube = lumoe.custom {
--       forward = function(ctx, x) ctx.x = x; return x * x * x end,
--       backward = function(ctx, dy) return dy * ctx.x * ctx.x * 3 end,
--     }
--
-- forward runs without recording and may return several tensors; backward gets one gradient for each
-- (nil where none arrived) and returns one for each tensor argument of forward (nil for none).
-- What ctx holds lives until backward is done, also across a scope; then release(ctx), if there is
-- one, may dispose of it at once.
---@param def { forward: function, backward: function, release?: function, name?: string }
function autograd.custom(def)
  tensor.options(def, { forward = true, backward = true, release = true, name = true }, 'custom')
  for _, name in ipairs { 'forward', 'backward' } do
    if type(def) ~= 'table' or type(def[name]) ~= 'function' then
      status.argument('custom: wants { forward = function, backward = function }; %s is %s', name,
        type(def) == 'table' and type(def[name]) or 'nil')
    end
  end
  local name = def.name or 'custom function'
  return function(...)
    local context, inputs = {}, {}
    for i = 1, select('#', ...) do
      local value = select(i, ...)
      if tensor.is_tensor(value) then inputs[#inputs + 1] = value end
    end
    local outputs = { autograd.no_grad(def.forward, context, ...) }
    local ins = ffi.new('lm_tensor *[?]', math.max(#inputs, 1))
    for i, x in ipairs(inputs) do ins[i - 1] = pointer(x, name, 'argument ' .. i) end
    -- An output that is an input, or a view of one, gets a header of its own.
    for i, y in ipairs(outputs) do
      if not tensor.is_tensor(y) then status.argument('%s: result %d is no tensor', name, i) end
      outputs[i] = y:detach()
    end
    local outs = ffi.new('lm_tensor *[?]', math.max(#outputs, 1))
    for i, y in ipairs(outputs) do outs[i - 1] = pointer(y) end
    local id = next_id
    check(C.lm_custom_record(id, #inputs, ins, #outputs, outs, recorded))
    if recorded[0] == 1 then
      next_id = next_id % 0x7ffffff0 + 1
      for _, value in pairs(context) do
        if tensor.is_tensor(value) then handle.keep(value) end
      end
      pending[id] = { backward = def.backward, release = def.release, context = context, name = name,
        inputs = #inputs, outputs = #outputs }
    end
    return unpack(outputs)
  end
end

-- Does `act` to a tensor, or to all in a table and the tables in it.
local function each_tensor(value, act, seen)
  if tensor.is_tensor(value) then
    if handle.alive(value) then act(value) end
  elseif type(value) == 'table' and not (seen and seen[value]) then
    seen = seen or {}
    seen[value] = true
    for _, inner in pairs(value) do each_tensor(inner, act, seen) end
  end
end

local function left_scope(ok, ...)
  if ok then
    for i = 1, select('#', ...) do each_tensor((select(i, ...)), handle.lift) end
  end
  C.lm_scope_leave()
  forget_freed()
  if not ok then error((...), 0) end
  return ...
end

--- Runs f(...); the tensors it made are gone afterwards, except those that it returns
-- (also in tables), which go to the scope around this one, or passed to `keep`. An error leaves
-- the scope too.
function autograd.scope(f, ...)
  check_callable(f, 'scope')
  check(C.lm_scope_enter())
  return left_scope(xpcall(f, unchanged, ...))
end

--- Takes a tensor, or all in a table, out of the open scopes.
function autograd.keep(value)
  each_tensor(value, handle.keep)
  return value
end

return autograd
