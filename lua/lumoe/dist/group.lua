--- Ranks, groups of them, and the collectives between them (runtime/dist.h), on tensors and numbers.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local checked = require 'lumoe.dist.checked'
local status = require 'lumoe.status'

local group = {}
local check = status.check

local DTYPE = { f32 = C.LM_F32, bf16 = C.LM_BF16, i32 = C.LM_I32, i64 = C.LM_I64, u8 = C.LM_U8 }
local OP = { sum = C.LM_REDUCE_SUM, max = C.LM_REDUCE_MAX, min = C.LM_REDUCE_MIN }

-- ---- who there is --------------------------------------------------------------------------

local function number(n)
  if n < 0 then status.raise() end
  return n
end

--- This process's number, from 0.
function group.rank() return number(C.lm_dist_rank()) end
function group.world_size() return number(C.lm_dist_world_size()) end
--- Number and count among the ranks of this host.
function group.local_rank() return number(C.lm_dist_local_rank()) end
function group.local_size() return number(C.lm_dist_local_size()) end
--- Whether there are other ranks, asked without starting the transport.
function group.launched() return C.lm_dist_launched() == 1 end

---@class lumoe.Group
---@field size integer
---@field rank integer   this process within the group
---@field ranks integer[]  numbers of its members in the world, in the group's order
---@field pointer cdata
local Group = {}
Group.__index = Group

local made = {} -- list of ranks, as text -> group

--- A group of world ranks, made by exactly its members together. The same list gives the same group.
---@param ranks integer[]
---@return lumoe.Group
function group.group(ranks)
  local key = table.concat(ranks, ' ')
  if not made[key] then
    local out = ffi.new 'lm_group *[1]'
    check(C.lm_group_new(ffi.new('int32_t[?]', #ranks, ranks), #ranks, out))
    local pointer = ffi.gc(out[0], C.lm_group_release)
    made[key] = setmetatable({ pointer = pointer, size = #ranks, rank = C.lm_group_rank(pointer), ranks = ranks }, Group)
  end
  return made[key]
end

local world

--- All ranks.
function group.world()
  if not world then
    local ranks = {}
    for r = 0, group.world_size() - 1 do ranks[r + 1] = r end
    world = group.group(ranks)
  end
  return world
end

--- The contiguous share of `count` rows that rank `rank` of `size` holds: first, length.
function group.share(count, rank, size)
  size = size or group.world_size()
  rank = rank or group.rank()
  local first = math.floor(count * rank / size)
  return first, math.floor(count * (rank + 1) / size) - first
end

-- ---- collectives ---------------------------------------------------------------------------

local function buffer(t, name)
  if not t:is_contiguous() then status.argument('%s: the tensor must be contiguous', name) end
  return t:data_ptr(), DTYPE[t.dtype]
end

--- In place: t becomes the 'sum' (default), 'max' or 'min' over the ranks; bitwise the same on all.
function group.all_reduce(t, op, among)
  if not OP[op or 'sum'] then status.argument("all_reduce: no operation '%s'; there are sum, max, min", tostring(op)) end
  among = among or group.world()
  if among.size > 1 then
    local data, dtype = buffer(t, 'all_reduce')
    checked(C.lm_all_reduce(among.pointer, data, t:numel(), dtype, OP[op or 'sum']))
  end
  return t
end

--- In place: every rank gets t of `root` (a rank of the group).
function group.broadcast(t, root, among)
  among = among or group.world()
  if among.size > 1 then
    checked(C.lm_broadcast(among.pointer, (buffer(t, 'broadcast')), t:numel() * C.lm_dtype_size(DTYPE[t.dtype]), root or 0))
  end
  return t
end

function group.barrier(among) check(C.lm_barrier((among or group.world()).pointer)) end

local one = ffi.new 'double[1]'

--- A number, added up (or 'max', 'min') over the ranks.
function group.reduce_number(value, op, among)
  among = among or group.world()
  one[0] = value
  if among.size > 1 then checked(C.lm_all_reduce(among.pointer, one, 1, C.LM_F64, OP[op or 'sum'])) end
  return one[0]
end

--- Every rank's text, in the order of the ranks, on every rank.
---@param text string
---@return string[]
function group.gather_texts(text, among)
  among = among or group.world()
  if among.size == 1 then return { text } end
  local lengths, mine = ffi.new('int64_t[?]', among.size), ffi.new('int64_t[1]', #text)
  checked(C.lm_all_gather(among.pointer, mine, 8, lengths), mine, lengths)
  local total = 0
  for r = 0, among.size - 1 do total = total + tonumber(lengths[r]) end
  local all = ffi.new('char[?]', math.max(total, 1))
  checked(C.lm_all_gather_v(among.pointer, text, lengths, all), text, all)
  local texts, at = {}, 0
  for r = 0, among.size - 1 do
    texts[r + 1] = ffi.string(all + at, lengths[r])
    at = at + tonumber(lengths[r])
  end
  return texts
end

--- After an interrupt on all ranks, called by all of them: the groups, broken since, can be used again.
-- What the interrupted collectives were to write is undefined.
function group.recover() check(C.lm_dist_recover()) end

--- Errors of one rank become errors of all: every rank calls this, with nil or its message.
function group.agree(message, among)
  local st = message and (status.is_refusal(message) and C.LM_EUSER or C.LM_EARG) or 0
  check(C.lm_dist_agree_text((among or group.world()).pointer, st, message))
end

--- f(...), which all ranks call, and in which any may fail: an error on one rank is then an error on all, wherever
-- they are by that time, and the groups can be used again. (Without it, a rank that fails alone ends the job.)
function group.together(f, ...)
  if group.world_size() == 1 then return f(...) end
  local function rejoin(ok, ...)
    local message = not ok and tostring((...)) or nil
    local st = ok and 0 or status.is_refusal(message) and C.LM_EUSER or C.LM_EARG
    st = C.lm_dist_rejoin(st, message)
    if st == C.LM_EUSER then status.raise(st) end
    if st < 0 then error(ffi.string(C.lm_last_error()), 0) end
    return ...
  end
  return rejoin(pcall(f, ...))
end

--- Work that rank 0 does for all: an error there is an error everywhere, and nobody goes on before.
function group.once(f)
  local message
  if group.rank() == 0 then
    local ok, raised = xpcall(f, status.traceback)
    message = not ok and raised or nil
  end
  group.agree(message)
end

return group
