--- The plan of one layer and micro-batch (runtime/moe.h), as Lua sees it: `layer.last_plan`.
-- Immutable. Lists that it gives count experts, ranks and tokens from 1, as Lua tables do; ids
-- inside them count from 0.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local dist = require 'lumoe.dist.counters'
local exchanges = require 'lumoe.moe.exchange'
local handle = require 'lumoe.handle'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local plan = {}

local SELECT = { random = C.LM_SELECT_RANDOM, position = C.LM_SELECT_POSITION,
  probability = C.LM_SELECT_PROBABILITY, priority = C.LM_SELECT_PRIORITY }
local NORMALIZE = { [false] = C.LM_NORMALIZE_NONE, chosen = C.LM_NORMALIZE_CHOSEN, kept = C.LM_NORMALIZE_KEPT }
local DTYPE = { i32 = C.LM_I32, i64 = C.LM_I64 }
local LEGS = { 'plan', 'dispatch', 'combine', 'dispatch_backward', 'combine_backward', 'shadow',
  'shadow_backward' } -- in C's order

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

-- ---- making one ----------------------------------------------------------------------------

-- A whole, or a part of one. All have one metatable: of one that a plan has to itself, a compiled trace would keep the plan
-- that it was made for.
local function object(of, tokens, o, capacity, valid_tokens, hash)
  return setmetatable({ pointer = of, tokens = tokens, top_k = o.top_k, experts = o.experts, capacity = capacity,
    valid_tokens = valid_tokens, hash = hash, mesh = o.mesh, parts = {} }, Plan)
end

--- Collective over mesh.tokens. Takes what it is given as it is: layer.lua prepares it.
---@param o table  router, expert_ids, top_k, tokens, experts, token_ids, valid?, scores?, priorities? (double*),
--- select?, capacity_factor?, owner? (int32_t*, places), seed, stream, mesh, exchange?, error?
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
  local exchange, hosts = exchanges(o.exchange, 'exchange'), nil
  if exchange.way == 'two_level' and exchange.hosts then
    if #exchange.hosts ~= o.mesh.expert.size then
      status.argument('exchange.hosts names %d, but %d ranks hold the experts', #exchange.hosts, o.mesh.expert.size)
    end
    hosts = ffi.new('int32_t[?]', o.mesh.expert.size, exchange.hosts)
  end
  spec.once, spec.way, spec.hosts = exchange.once and 1 or 0, exchange.code, hosts
  spec.parts, spec.shadow = exchange.parts, exchange.shadow or 0
  spec.seed, spec.stream = o.seed or 0, o.stream or 0
  check(C.lm_plan_new(spec, o.mesh.tokens.pointer, o.mesh.expert.pointer, plan_out))
  local p = ffi.gc(plan_out[0], C.lm_plan_release)
  local capacity, hash = C.lm_plan_capacity(p), ffi.string(C.lm_plan_hash(p))
  if capacity < 0 then capacity = nil end
  local made = object(p, o.tokens, o, capacity, C.lm_plan_valid_tokens(p), hash)
  for i = 1, C.lm_plan_parts(p) do -- each keeps the whole alive
    local part = C.lm_plan_part(p, i - 1)
    C.lm_plan_retain(part)
    made.parts[i] = object(ffi.gc(part, C.lm_plan_release), C.lm_plan_tokens(part), o, capacity, made.valid_tokens, hash)
  end
  return made
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

--- Weights of this rank's own experts, [experts, ...], with those of the plan's shadows after them. For experts that do
-- more than linear maps: their other parameters need it too. Differentiable.
function Plan:with_shadows(weight)
  if C.lm_plan_shadows(self.pointer) == 0 then return weight end
  return run(self, C.lm_moe_shadow, pointer(weight, 'shadow', 'weight'), out)
end

--- x [arrivals, in], weight [own experts, out, in], bias [own experts, out] or nil.
function Plan:linear(x, weight, bias)
  weight, bias = self:with_shadows(weight), bias ~= nil and self:with_shadows(bias) or nil
  return run(self, C.lm_moe_linear, pointer(x, 'experts', 'x'), pointer(weight, 'experts', 'weight'),
    bias ~= nil and pointer(bias, 'experts', 'bias') or nil, out)
end

local ACTIVATION = { relu = C.LM_FFN_RELU, gelu = C.LM_FFN_GELU, gelu_tanh = C.LM_FFN_GELU_TANH,
  silu = C.LM_FFN_SILU, swiglu = C.LM_FFN_SWIGLU }

--- All experts are of this process: `ffn` may take tokens and their weights.
function Plan:at_home() return C.lm_plan_at_home(self.pointer) == 1 end

--- Feed-forward experts in one: x [arrivals, dim] -> [arrivals, dim]; with weights [tokens, top_k], of a plan at home,
-- [tokens, dim] -> [tokens, dim]. e: { up, up_bias?, down, down_bias?, activation, recompute? }, of this rank's experts.
function Plan:ffn(x, e, weights)
  local up, down = self:with_shadows(e.up), self:with_shadows(e.down)
  local up_bias = e.up_bias and self:with_shadows(e.up_bias)
  local down_bias = e.down_bias and self:with_shadows(e.down_bias)
  return run(self, C.lm_moe_ffn, pointer(x, 'experts', 'x'), pointer(up, 'experts', 'up'),
    up_bias and pointer(up_bias, 'experts', 'up_bias') or nil, pointer(down, 'experts', 'down'),
    down_bias and pointer(down_bias, 'experts', 'down_bias') or nil,
    weights and pointer(weights, 'experts', 'weights') or nil, ACTIVATION[e.activation], e.recompute and 1 or 0, out)
end

--- x [arrivals, dim], weights [tokens, top_k] -> [tokens, dim].
function Plan:combine(x, weights)
  return run(self, C.lm_moe_combine, pointer(x, 'combine', 'x'), pointer(weights, 'combine', 'weights'), out)
end

-- Tokens of a part, if there is one, on their way. No closure: a trace through it would keep its plan alive.
local function leave(part, x, weights)
  if not part then return end
  check(C.lm_moe_dispatch_start(part.pointer, pointer(x, 'dispatch', 'x'), pointer(weights, 'combine', 'weights')))
end

-- Part after part: while one is with the experts, the next is on its way to them and the one before on its way
-- home. Backward mirrors it, since it goes through the same halves in the other order.
local function in_parts(self, x, weights, experts, ...)
  local rows, w, first, home = {}, {}, 0, {}
  for i, part in ipairs(self.parts) do
    rows[i], w[i] = x[{ { first, first + part.tokens } }], weights[{ { first, first + part.tokens } }]
    first = first + part.tokens
  end
  leave(self.parts[1], rows[1], w[1])
  for i, part in ipairs(self.parts) do
    local arrivals = run(part, C.lm_moe_dispatch_finish, out)
    leave(self.parts[i + 1], rows[i + 1], w[i + 1])
    local results = experts(arrivals, part, ...)
    check(C.lm_moe_combine_start(part.pointer, pointer(results, 'combine', 'x'), pointer(w[i], 'combine', 'weights')))
  end
  for i, part in ipairs(self.parts) do
    home[i] = run(part, C.lm_moe_combine_finish, pointer(w[i], 'combine', 'weights'), out)
  end
  return tensor.cat(home, 0)
end

--- x [tokens, dim] to the experts and back: [tokens, dim], weighed. experts(arrivals, plan, ...) -> [arrivals, dim] is
-- called with a plan's part for each part; an expert's gradients add up over them.
function Plan:through(x, weights, experts, ...)
  if #self.parts == 0 then return self:combine(experts(self:dispatch(x), self, ...), weights) end
  local ok, result = pcall(in_parts, self, x, weights, experts, ...)
  if ok then return result end
  C.lm_moe_abandon(self.pointer)
  error(result, 0)
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

--- What this rank has sent to the others so far, counted as it went: for each of the legs plan, dispatch, combine,
-- dispatch_backward and combine_backward, rows, bytes and messages to each rank of the expert group. bytes and
-- messages also count what goes with the rows: which experts they are for (leg plan), weights.
---@return table<string, { rows: integer[], bytes: integer[], messages: integer[] }>
function Plan:traffic()
  local counts, ranks, traffic = C.lm_plan_traffic(self.pointer), self.mesh.expert.size, {}
  for i, leg in ipairs(LEGS) do
    local sent = { rows = {}, bytes = {}, messages = {} }
    for r = 0, ranks - 1 do
      local at = ((i - 1) * ranks + r) * 3
      sent.rows[r + 1], sent.bytes[r + 1] = tonumber(counts[at]), tonumber(counts[at + 1])
      sent.messages[r + 1] = tonumber(counts[at + 2])
    end
    traffic[leg] = sent
  end
  return traffic
end

--- What went with this plan so far from host to host, added up over all ranks, which all ask: [from + 1][to + 1] = { bytes,
-- messages, rows }, hosts counted from 0 (dist.host). legs: those that count; by default all but plan.
---@param legs string[]?
function Plan:between_hosts(legs)
  local traffic, sent = self:traffic(), {}
  for i, rank in ipairs(self.mesh.expert.ranks) do
    local to = { rank = rank, host = dist.host(rank), bytes = 0, messages = 0, rows = 0 }
    for _, leg in ipairs(legs or { unpack(LEGS, 2) }) do
      for _, what in ipairs { 'bytes', 'messages', 'rows' } do to[what] = to[what] + traffic[leg][what][i] end
    end
    sent[i] = to
  end
  return dist.between_hosts(sent)
end

--- Parcels that this rank sends to each rank of its expert group (itself included): rows, or with `once` fewer.
function Plan:sends() return list(C.lm_plan_sends(self.pointer), self.mesh.expert.size) end
function Plan:receives() return list(C.lm_plan_receives(self.pointer), self.mesh.expert.size) end
--- Rows that reach this rank's experts.
function Plan:arrivals() return C.lm_plan_arrivals(self.pointer) end
--- Ids of this rank's own experts.
function Plan:local_experts() return list(C.lm_plan_expert_of(self.pointer), C.lm_plan_own_experts(self.pointer)) end
--- Ids of the experts that are shadowed: on all ranks for this plan.
function Plan:shadows()
  local ids = {}
  for e = 0, self.experts - 1 do
    if C.lm_plan_is_shadow(self.pointer, e) == 1 then ids[#ids + 1] = e end
  end
  return ids
end

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
