--- Ranks, the mesh they form, and what training needs of them: gradients summed, one norm.
--
-- Every rank runs the same script. A process that no launcher started is a world of one, and
-- everything here is then free. The transport starts at the first call (runtime/dist.h).
--
-- One rule for scale: losses are already divided by the counted targets of all ranks, so gradients
-- are summed, never averaged: dense ones over all ranks with other tokens, an expert's over the
-- ranks that hold a replica of it.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local handle = require 'lumoe.handle'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local dist = {}
local check = status.check

local DTYPE = { f32 = C.LM_F32, bf16 = C.LM_BF16, i32 = C.LM_I32, i64 = C.LM_I64, u8 = C.LM_U8 }
local OP = { sum = C.LM_REDUCE_SUM, max = C.LM_REDUCE_MAX, min = C.LM_REDUCE_MIN }

local function number(n)
  if n < 0 then status.raise() end
  return n
end

--- This process's number, from 0.
function dist.rank() return number(C.lm_dist_rank()) end
function dist.world_size() return number(C.lm_dist_world_size()) end
--- Number and count among the ranks of this host.
function dist.local_rank() return number(C.lm_dist_local_rank()) end
function dist.local_size() return number(C.lm_dist_local_size()) end
--- Whether there are other ranks, asked without starting the transport.
function dist.launched() return C.lm_dist_launched() == 1 end

-- ---- groups and collectives ----------------------------------------------------------------

---@class lumoe.Group
---@field size integer
---@field rank integer   this process within the group
---@field pointer cdata?  nil in a world of one
local Group = {}
Group.__index = Group

--- A group of world ranks, made by exactly its members together.
---@param ranks integer[]
---@return lumoe.Group
function dist.group(ranks)
  local out = ffi.new 'lm_group *[1]'
  check(C.lm_group_new(ffi.new('int32_t[?]', #ranks, ranks), #ranks, out))
  local pointer = ffi.gc(out[0], C.lm_group_release)
  return setmetatable({ pointer = pointer, size = #ranks, rank = C.lm_group_rank(pointer), ranks = ranks }, Group)
end

local world

--- All ranks.
function dist.world()
  if not world then
    local ranks = {}
    for r = 0, dist.world_size() - 1 do ranks[r + 1] = r end
    world = dist.group(ranks)
  end
  return world
end

local function buffer(t, name)
  if not t:is_contiguous() then status.argument('%s: the tensor must be contiguous', name) end
  return t:data_ptr(), DTYPE[t.dtype]
end

--- In place: t becomes the 'sum' (default), 'max' or 'min' over the ranks; bitwise the same on all.
function dist.all_reduce(t, op, group)
  if not OP[op or 'sum'] then status.argument("all_reduce: no operation '%s'; there are sum, max, min", tostring(op)) end
  group = group or dist.world()
  if group.size > 1 then
    local data, dtype = buffer(t, 'all_reduce')
    check(C.lm_all_reduce(group.pointer, data, t:numel(), dtype, OP[op or 'sum']))
  end
  return t
end

--- In place: every rank gets t of `root` (a rank of the group).
function dist.broadcast(t, root, group)
  group = group or dist.world()
  if group.size > 1 then
    check(C.lm_broadcast(group.pointer, (buffer(t, 'broadcast')), t:numel() * C.lm_dtype_size(DTYPE[t.dtype]), root or 0))
  end
  return t
end

function dist.barrier(group) check(C.lm_barrier((group or dist.world()).pointer)) end

local one = ffi.new 'double[1]'

--- A number, added up (or 'max', 'min') over the ranks.
function dist.reduce_number(value, op, group)
  group = group or dist.world()
  one[0] = value
  if group.size > 1 then check(C.lm_all_reduce(group.pointer, one, 1, C.LM_F64, OP[op or 'sum'])) end
  return one[0]
end

--- Errors of one rank become errors of all: every rank calls this, with nil or its message.
function dist.agree(message, group)
  check(C.lm_dist_agree_text((group or dist.world()).pointer, message and C.LM_EARG or 0, message))
end

--- The contiguous share of `count` rows that rank `rank` of `size` holds: first, length.
function dist.share(count, rank, size)
  size = size or dist.world_size()
  rank = rank or dist.rank()
  local first = math.floor(count * rank / size)
  return first, math.floor(count * (rank + 1) / size) - first
end

-- ---- the mesh ------------------------------------------------------------------------------

local LATER = { tp = 'tensor parallelism', etp = 'tensor parallelism of experts' }
local meshes = {}

---@class lumoe.Mesh
---@field dp integer   ranks with different tokens
---@field ep integer   ranks over which one set of experts is spread
---@field edp integer  replicas of that set
---@field data lumoe.Group    all ranks with tokens
---@field expert lumoe.Group  this rank's set of experts
---@field replicas lumoe.Group  the ranks that hold the same experts

local function check_mesh(opts)
  for key in pairs(opts) do
    if key ~= 'ep' and key ~= 'zero' and key ~= 'offload' and not LATER[key] then
      status.argument("mesh: unknown option '%s'; there are ep, etp, offload, tp, zero", tostring(key))
    end
  end
  for key, what in pairs(LATER) do
    if opts[key] ~= nil and opts[key] ~= 1 then
      status.argument("mesh: option '%s' (%s) belongs to a later release; it can only be 1", key, what)
    end
  end
  for part, stage in pairs(opts.zero or {}) do
    if stage ~= 0 then status.argument("mesh: option 'zero.%s' (ZeRO) belongs to a later release; it can only be 0", part) end
  end
  if opts.offload then status.argument "mesh: option 'offload' belongs to a later release" end
  local ep, size = opts.ep or 1, dist.world_size()
  if type(ep) ~= 'number' or ep < 1 or ep % 1 ~= 0 then
    status.argument('mesh: ep must be a whole number from 1, not %s', tostring(ep))
  end
  if size % ep ~= 0 then
    status.argument('mesh: ep = %d does not divide the %d rank%s of the job', ep, size, size == 1 and '' or 's')
  end
  return ep, size
end

--- How the ranks share the work: world = dp = edp · ep. All ranks call it alike.
---@param opts { ep?: integer, tp?: 1, etp?: 1 }?
---@return lumoe.Mesh
function dist.mesh(opts)
  local ep, size = check_mesh(opts or {})
  if meshes[ep] then return meshes[ep] end
  local rank = dist.rank()
  local expert, replicas = {}, {}
  for i = 0, ep - 1 do expert[i + 1] = rank - rank % ep + i end -- neighbours exchange tokens
  for i = 0, size / ep - 1 do replicas[i + 1] = rank % ep + i * ep end
  meshes[ep] = { dp = size, ep = ep, edp = size / ep, tp = 1, etp = 1,
    data = dist.world(), expert = dist.group(expert), replicas = dist.group(replicas) }
  return meshes[ep]
end

-- ---- gradients -----------------------------------------------------------------------------

-- Calls f(tensor, mesh) for every parameter, in an order that is the same on every rank; mesh is that
-- of an expert's parameter, nil for a dense one. The module says so where it makes the parameter.
local function each(module, f)
  for _, p in ipairs(module:named_parameters()) do
    if p.tensor.requires_grad then f(p.tensor, p.spec.group == 'expert' and p.module._mesh or nil) end
  end
end

--- Sums every gradient of a module over the ranks that hold other tokens for it. A parameter that got
-- none on this rank counts as zeros, since it may have got one elsewhere.
---@param module lumoe.Module
function dist.reduce_gradients(module)
  if dist.world_size() == 1 then return end
  each(module, function(p, mesh)
    if p.grad == nil then p.grad = tensor.zeros(p:shape_table()) end
    dist.all_reduce(p.grad, 'sum', mesh and mesh.replicas or dist.world())
  end)
end

--- The norm of all gradients of a module, each parameter counted once; call it after
-- reduce_gradients. All ranks get the same number.
---@param module lumoe.Module
---@return number
function dist.grad_norm(module)
  local total, sharded = 0, {} -- sums of squares; ep -> those of this rank's experts
  each(module, function(p, mesh)
    check(C.lm_optim_grad_sqsum(handle.pointer(p), one))
    local squares = one[0]
    if mesh and mesh.ep > 1 then sharded[mesh.ep] = (sharded[mesh.ep] or 0) + squares
    else total = total + squares end
  end)
  local sizes = {}
  for ep in pairs(sharded) do sizes[#sizes + 1] = ep end
  table.sort(sizes) -- the same collectives in the same order everywhere
  for _, ep in ipairs(sizes) do total = total + dist.reduce_number(sharded[ep], 'sum', meshes[ep].expert) end
  return math.sqrt(total)
end

--- Scales all gradients so that their norm is at most max_norm. Returns the norm before.
function dist.clip_grad_norm(module, max_norm)
  local norm = dist.grad_norm(module)
  if norm > max_norm then
    each(module, function(p)
      if p.grad ~= nil then p.grad:copy_(p.grad * (max_norm / norm)) end
    end)
  end
  return norm
end

return dist
