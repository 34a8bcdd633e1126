--- The plan of one layer and micro-batch (runtime/moe.h), as Lua sees it: `layer.last_plan`.
-- Immutable. Lists that it gives count experts, ranks and tokens from 1, as Lua tables do; ids
-- inside them count from 0.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local handle = require 'lumoe.handle'
local status = require 'lumoe.status'

local plan = {}

local SELECT = { random = C.LM_SELECT_RANDOM, position = C.LM_SELECT_POSITION,
  probability = C.LM_SELECT_PROBABILITY, priority = C.LM_SELECT_PRIORITY }
local NORMALIZE = { [false] = C.LM_NORMALIZE_NONE, chosen = C.LM_NORMALIZE_CHOSEN, kept = C.LM_NORMALIZE_KEPT }
local DTYPE = { i32 = C.LM_I32, i64 = C.LM_I64 }

---@class lumoe.Plan
---@field pointer cdata
---@field tokens integer         of this rank
---@field top_k integer
---@field experts integer        of the layer
---@field capacity number?       routes per expert; nil when dropless
---@field valid_tokens number    of all ranks
---@field hash string
local Plan = {}
Plan.__index = Plan

local pointer, check = handle.pointer, status.check
local out = ffi.new 'lm_tensor *[1]'
local plan_out = ffi.new 'lm_plan *[1]'
local spec = ffi.new 'lm_plan_spec'

-- The address of a contiguous tensor's elements; tensors stay alive in the caller's frame.
local function data(t, ctype) return t and ffi.cast(ctype, t:data_ptr()) or nil end

--- Collective over mesh.data. Takes what it is given as it is: layer.lua prepares it.
---@param o table  router, expert_ids, top_k, tokens, experts, token_ids, valid?, scores?, priorities? (double*),
--- select?, capacity_factor?, owner? (int32_t*, places), seed, stream, mesh, error?
---@return lumoe.Plan
function plan.new(o)
  ffi.fill(spec, ffi.sizeof(spec))
  spec.router, spec.error = o.router, o.error or ''
  spec.status = o.error and C.LM_EARG or 0
  spec.tokens, spec.top_k, spec.experts = o.tokens, o.top_k, o.experts
  if o.expert_ids then
    spec.expert_ids, spec.expert_ids_dtype = o.expert_ids:data_ptr(), DTYPE[o.expert_ids.dtype]
  end
  spec.token_ids = data(o.token_ids, 'const int64_t *')
  spec.valid = data(o.valid, 'const uint8_t *')
  spec.scores = data(o.scores, 'const float *')
  spec.priorities = o.priorities
  spec.select = SELECT[o.select or 'random']
  spec.capacity_factor = o.capacity_factor or -1
  spec.owner, spec.etp = o.owner, o.mesh.etp
  spec.seed, spec.stream = o.seed or 0, o.stream or 0
  check(C.lm_plan_new(spec, o.mesh.data.pointer, o.mesh.expert.pointer, plan_out))
  local p = ffi.gc(plan_out[0], C.lm_plan_release)
  local capacity = C.lm_plan_capacity(p)
  return setmetatable({ pointer = p, tokens = o.tokens, top_k = o.top_k, experts = o.experts,
    capacity = capacity >= 0 and capacity or nil, valid_tokens = C.lm_plan_valid_tokens(p),
    hash = ffi.string(C.lm_plan_hash(p)), mesh = o.mesh }, Plan)
end

-- Calls op; where memory is short, once more after Lua has let go of what it lost. Not over several
-- ranks: the others would not repeat their part of an exchange.
local function run(self, op, ...)
  local st = op(self.pointer, ...)
  if st == C.LM_EOOM and self.mesh.expert.size == 1 and handle.relieve() then st = op(self.pointer, ...) end
  if st < 0 then status.raise() end
  return handle.own(out[0])
end

-- ---- moving tokens -------------------------------------------------------------------------

--- x [tokens, dim] -> [arrivals, dim]: rows in the order of this rank's experts. Differentiable.
function Plan:dispatch(x) return run(self, C.lm_moe_dispatch, pointer(x, 'dispatch', 'x'), out) end

--- x [arrivals, in], weight [local experts, out, in], bias [local experts, out] or nil.
function Plan:linear(x, weight, bias)
  return run(self, C.lm_moe_linear, pointer(x, 'experts', 'x'), pointer(weight, 'experts', 'weight'),
    bias ~= nil and pointer(bias, 'experts', 'bias') or nil, out)
end

--- x [arrivals, dim], weights [tokens, top_k] -> [tokens, dim].
function Plan:combine(x, weights)
  return run(self, C.lm_moe_combine, pointer(x, 'combine', 'x'), pointer(weights, 'combine', 'weights'), out)
end

--- scores [tokens, experts] -> [tokens, top_k]; normalize: 'chosen', 'kept' or false.
function Plan:weights(scores, normalize)
  return run(self, C.lm_moe_weights, pointer(scores, 'weights', 'scores'), NORMALIZE[normalize], out)
end

-- ---- what it says --------------------------------------------------------------------------

local function list(array, n)
  local t = {}
  for i = 1, n do t[i] = tonumber(array[i - 1]) end
  return t
end

--- Routes per expert over all ranks, before dropping: entry e + 1 is expert e's.
function Plan:routed() return list(C.lm_plan_routed(self.pointer), self.experts) end
--- After dropping.
function Plan:kept() return list(C.lm_plan_kept(self.pointer), self.experts) end

--- Routes dropped over all ranks.
function Plan:dropped()
  local n = 0
  for e = 0, self.experts - 1 do
    n = n + tonumber(C.lm_plan_routed(self.pointer)[e] - C.lm_plan_kept(self.pointer)[e])
  end
  return n
end

--- Rows that this rank sends to each rank of its expert group (itself included).
function Plan:sends() return list(C.lm_plan_sends(self.pointer), self.mesh.expert.size) end
function Plan:receives() return list(C.lm_plan_receives(self.pointer), self.mesh.expert.size) end
--- Ids of this rank's experts.
function Plan:local_experts() return list(C.lm_plan_expert_of(self.pointer), C.lm_plan_local_experts(self.pointer)) end

--- Where a token of this rank (from 0) goes: a list, one entry a slot, of { expert = id or nil, dropped = boolean }.
function Plan:route_of(token)
  if token < 0 or token >= self.tokens then status.argument('route_of: token %d of %d', token, self.tokens) end
  local routes = {}
  for slot = 0, self.top_k - 1 do
    local r = token * self.top_k + slot
    local id = C.lm_plan_expert_ids(self.pointer)[r]
    routes[slot + 1] = { expert = id >= 0 and id or nil, dropped = id >= 0 and C.lm_plan_row_of(self.pointer)[r] < 0 }
  end
  return routes
end

function Plan:__tostring()
  return ('plan %s: %d tokens, top %d of %d experts, capacity %s, dropped %d\n  tokens per expert: %s'):format(
    self.hash, self.valid_tokens, self.top_k, self.experts, self.capacity or 'none', self:dropped(),
    table.concat(self:routed(), ' '))
end

return plan
