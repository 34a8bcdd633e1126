--- The boundary between Lua and lm_tensor: handles in, handles out.
-- A handle is {slot, generation} by value; `pointer` follows it, `own` makes one. Outside scopes
-- a handle has a finalizer, inside a scope the scope drops it (runtime/handle.h).
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local status = require 'lumoe.status'

local handle = {}

local slots = C.lm_handle_slots()
local handle_t = ffi.typeof 'lm_handle'
local istype = ffi.istype
handle.type = handle_t

local BUDGET_MIN = 256 * 2 ^ 20 -- bytes alive before Lua's collector is made to look for handles
local budget = BUDGET_MIN

local function wrong(value, op, name)
  local kind = type(value)
  status.argument('%s: %s must be a tensor, not %s', op, name,
    kind == 'nil' and 'nil' or kind == 'number' and tostring(value) or 'a ' .. kind)
end

local function stale(op)
  status.argument('%s: the tensor is gone: its scope ended (keep it with lumoe.keep) or it was disposed', op)
end

--- The lm_tensor* behind a handle. Raises naming `op` and the argument's `name`.
function handle.pointer(value, op, name)
  if not istype(handle_t, value) then wrong(value, op, name) end
  local slot = slots[value.slot]
  if slot.gen ~= value.gen then stale(op) end
  return slot.tensor
end

--- Whether the handle still leads to a tensor.
function handle.alive(value) return slots[value.slot].gen == value.gen end

--- Frees what Lua has lost and C's pool holds. True: worth trying again.
function handle.relieve()
  collectgarbage()
  collectgarbage()
  C.lm_memory_trim()
  return true
end

local function under_pressure()
  collectgarbage()
  collectgarbage()
  budget = math.max(BUDGET_MIN, 2 * C.lm_memory_live(-1))
end

--- A handle for an lm_tensor* whose reference the caller hands over.
function handle.own(pointer)
  local h = handle_t()
  local st = C.lm_handle_new(pointer, h)
  if st == 1 then return h end
  if st < 0 then
    C.lm_tensor_release(pointer)
    status.raise()
  end
  if C.lm_memory_live(-1) > budget then under_pressure() end
  return ffi.gc(h, C.lm_handle_drop)
end

--- Takes a handle out of its scopes: it lives until Lua forgets it.
function handle.keep(h)
  if C.lm_scope_keep(h) == 1 then ffi.gc(h, C.lm_handle_drop) end
  return h
end

--- Hands it from the innermost scope to the one around it, or to Lua when there is none.
function handle.lift(h)
  if C.lm_scope_lift(h) == 1 then ffi.gc(h, C.lm_handle_drop) end
  return h
end

return handle
