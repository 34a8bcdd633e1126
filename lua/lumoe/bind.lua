--- Makes a Lua function of every operation in runtime/ops.def, from the text of its parameters.
--
--   softmax(lm_tensor *x, int64_t dim, lm_tensor **out)   gives   softmax(x, dim) -> tensor
--
-- Tensors are followed and checked, `int` also takes a boolean or nil (0), the others are numbers;
-- each `lm_tensor **` becomes a result. What does not fit (lists, shapes) is written by hand in
-- tensor.lua, which gets the same C functions. An operation is made when it is first asked for: a program
-- uses few of them, and starts sooner.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local handle = require 'lumoe.handle'
local status = require 'lumoe.status'

local bind = { signatures = {} } -- name -> its parameters, as text

local function number(value, op, name)
  if type(value) ~= 'number' then
    status.argument('%s: %s must be a number, not %s', op, name, type(value))
  end
  return value
end

-- A dim, a size, a position: 1.5 must not pass for 1.
local function whole(value, op, name)
  if type(value) ~= 'number' or value % 1 ~= 0 then
    status.argument('%s: %s must be a whole number, not %s', op, name,
      type(value) == 'number' and tostring(value) or type(value))
  end
  return value
end

local function flag(value, op, name)
  if value == nil or value == false then return 0 end
  if value == true then return 1 end
  return number(value, op, name)
end

local function parameters(text)
  local list = {}
  for item in text:gmatch '[^,]+' do
    local type_, name = item:match '^(.*[%s*])([%w_]+)$' -- greedy: read once, from the end
    list[#list + 1] = { type = type_:gsub('%s+', ''), name = name }
  end
  return list
end

local HANDLED = { ['lm_tensor*'] = true, ['LM_MAYBElm_tensor*'] = true, ['lm_tensor**'] = true,
  int = true, int64_t = true, double = true }

-- The source of one function, so that each op is its own small, traceable piece of Lua.
local function source(op, params)
  local names, arguments, outs, results = {}, {}, {}, {}
  local said = op:gsub('_all$', ''):gsub('^r(%l+_scalar)$', '%1'):gsub('_scalar$', '') -- as users know it
  for _, p in ipairs(params) do
    if p.type == 'lm_tensor**' then
      outs[#outs + 1] = p.name
      arguments[#arguments + 1] = 'out' .. #outs
      results[#results + 1] = ('own(out%d[0])'):format(#outs)
    else
      names[#names + 1] = p.name
      local call = p.type == 'int' and 'flag' or p.type == 'int64_t' and 'whole'
        or p.type:find('tensor', 1, true) and 'pointer' or 'number'
      local argument = ('%s(%s, %q, %q)'):format(call, p.name, said, p.name)
      if p.type:find('MAYBE', 1, true) then
        argument = ('%s ~= nil and %s or nil'):format(p.name, argument)
      end
      arguments[#arguments + 1] = argument
    end
  end
  local call = ('C.lm_%s(%s)'):format(op, table.concat(arguments, ', '))
  return ([[
    local C, pointer, own, number, whole, flag, raise, relieve, out1, out2 = ...
    return function(%s)
      local st = %s
      if st < 0 then
        if st == %d and relieve() then st = %s end
        if st < 0 then raise() end
      end
      return %s
    end]]):format(table.concat(names, ', '), call, C.LM_EOOM, call, table.concat(results, ', '))
end

local function read_signatures()
  local i, text = 0, C.lm_op_signature(0)
  while text ~= nil do
    local op, params = ffi.string(text):match '^([%w_]+)%((.*)%)$'
    bind.signatures[op] = params
    i = i + 1
    text = C.lm_op_signature(i)
  end
end
read_signatures()

local function make(op)
  local params = parameters(bind.signatures[op])
  for _, p in ipairs(params) do
    if not HANDLED[p.type] or p.name == 'list' then return nil end
  end
  return assert(load(source(op, params), '@/lua/lumoe/ops/' .. op))(C, handle.pointer, handle.own,
    number, whole, flag, status.raise, handle.relieve, ffi.new 'lm_tensor *[1]', ffi.new 'lm_tensor *[1]')
end

--- Every operation that fits, under its name; nil for other names.
bind.ops = setmetatable({}, {
  __index = function(ops, op)
    local f = bind.signatures[op] and make(op)
    if f then rawset(ops, op, f) end
    return f
  end,
})

return bind
