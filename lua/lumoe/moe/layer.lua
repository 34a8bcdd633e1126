--- The MoE layer: router -> plan -> dispatch -> experts -> combine.
--
-- The router says which experts; the plan (C, over all ranks) says who is dropped and where each row
-- goes; weights are gathered from the router's scores, so gradients reach it through them alone.
--
-- Where a tensor group holds the same tokens (tp > 1), router and balancers see them all on each of its
-- ranks, alike to the last bit; from the plan to combine each rank has its share of them.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local batch = require 'lumoe.moe.batch'
local dist = require 'lumoe.dist'
local exchange = require 'lumoe.moe.exchange'
local module = require 'lumoe.nn.module'
local plan = require 'lumoe.moe.plan'
local random = require 'lumoe.random'
local recompute = require 'lumoe.nn.recompute'
local stats = require 'lumoe.moe.stats'
local status = require 'lumoe.status'
local tags_of = require 'lumoe.moe.tags'
local tensor = require 'lumoe.tensor'
local trace = require 'lumoe.moe.trace'

---@class lumoe.moe.Layer : lumoe.Module
---@field experts lumoe.moe.FFN
---@field router lumoe.Router
---@field last_plan lumoe.Plan?
local Layer = module.class 'MoELayer'

local OPTIONS = { dim = true, experts = true, router = true, capacity = true, balance = true, normalize = true,
  mesh = true, owner = true, recompute = true, exchange = true }
local CAPACITY = { factor = true, eval_factor = true, select = true }
local SELECT = { random = true, position = true, probability = true }

-- "3", "a function": what was given instead.
local function described(value)
  local kind = type(value)
  return (kind == 'number' or kind == 'nil') and tostring(value) or 'a ' .. kind
end

local function check_capacity(capacity)
  if capacity == nil then return {} end
  tensor.options(capacity, CAPACITY, 'moe.Layer: capacity')
  for _, name in ipairs { 'factor', 'eval_factor' } do
    local f = capacity[name]
    if f ~= nil and (type(f) ~= 'number' or f <= 0 or f ~= f) then
      status.argument('moe.Layer: capacity.%s must be a number above 0, not %s', name, tostring(f))
    end
  end
  local select = capacity.select or 'random'
  if type(select) ~= 'function' and not SELECT[select] then
    status.argument("moe.Layer: capacity.select must be 'random', 'position', 'probability' or a function, not %s",
      tostring(select))
  end
  return { factor = capacity.factor, eval_factor = capacity.eval_factor, select = select }
end

local function check_normalize(normalize)
  if normalize ~= 'chosen' and normalize ~= 'kept' and normalize ~= false then
    status.argument("moe.Layer: normalize must be 'chosen', 'kept' or false, not %s", tostring(normalize))
  end
  return normalize
end

local function check_balance(list)
  list = list or {}
  if type(list) ~= 'table' or list.balance then
    status.argument 'moe.Layer: balance must be a list of balancers, as { moe.balance.load(0.01) }'
  end
  for key in pairs(list) do
    if type(key) ~= 'number' then status.argument("moe.Layer: balance is a list, and has no place '%s'", tostring(key)) end
  end
  for i, balancer in ipairs(list) do
    if type(balancer) ~= 'function' and not (type(balancer) == 'table' and type(balancer.balance) == 'function') then
      status.argument('moe.Layer: balance[%d] must be a function or have a method `balance`', i)
    end
  end
  return list
end

-- What dim, experts and router must be for the layer to be made of them.
local function check_parts(opts)
  for _, name in ipairs { 'dim', 'experts', 'router' } do
    if opts[name] == nil then status.argument("moe.Layer: option '%s' is missing", name) end
  end
  if type(opts.dim) ~= 'number' or opts.dim < 1 or opts.dim % 1 ~= 0 then
    status.argument('moe.Layer: dim must be a whole number from 1, not %s', tostring(opts.dim))
  end
  local experts, router = opts.experts, opts.router
  if not module.is_module(experts) or type(experts.attach) ~= 'function' or type(experts.count) ~= 'number' then
    status.argument('moe.Layer: experts must be a moe.FFN, or a module like it, not %s', described(experts))
  end
  if not module.is_module(router) or type(router.choose) ~= 'function' then
    status.argument('moe.Layer: router must be a moe.Router, not %s', described(router))
  end
end

-- Which place (a rank of the expert group, or with etp a few) holds which expert: as given, or even blocks.
local function owners(given, experts, ranks)
  local owner = ffi.new('int32_t[?]', experts)
  for e = 0, experts - 1 do owner[e] = given and given[e + 1] or math.floor(e * ranks / experts) end
  if given and #given ~= experts then
    status.argument('moe.Layer: owner names %d ranks for %d experts', #given, experts)
  end
  for e = 0, experts - 1 do
    if owner[e] < 0 or owner[e] >= ranks then
      status.argument('moe.Layer: owner[%d] is rank %d, but experts are spread over %d', e + 1, owner[e], ranks)
    end
  end
  return owner
end

--- Options:
--   dim        size of a token
--   experts    moe.FFN, or a module with `count`, `attach(dim, mesh, local_ids)` and `forward(x, plan)`
--   router     moe.Router
--   capacity   nil: dropless; or { factor, eval_factor, select = 'random' }: training drops over
--              ceil(factor · top_k · T / E), T the valid tokens of all ranks; evaluation drops nothing
--              unless it has a factor, and then 'random' becomes 'probability'. select: 'random',
--              'position', 'probability', or function(choice, tags) -> [tokens, top_k] priorities
--   balance    a list of balancers (moe/balance); their losses, in training, are the layer's second result
--   normalize  weights sum to 1 over the 'chosen' or the 'kept' routes, or false: scores as they are
--   mesh       dist.mesh { tp =, ep =, etp = }; by default every rank holds all experts, whole. x is the
--              same on all ranks of its tensor group
--   recompute  true: what the experts compute is forgotten after forward, and computed again in backward
--   owner      place (rank of the expert group, from 0; with etp, every etp of them) of each expert;
--              by default even blocks
--   exchange   how rows travel between ranks: 'rows' (default), 'once', 'padded', 'two_level', or a table:
--              { once = true, way = 'two_level', parts = 4, shadow = 2 } (moe/exchange.lua)
function Layer:init(opts)
  if opts == nil then status.argument 'moe.Layer: wants a table of options' end
  tensor.options(opts, OPTIONS, 'moe.Layer')
  check_parts(opts)
  self.dim, self.experts, self.router = opts.dim, opts.experts, opts.router
  self.capacity, self.balance = check_capacity(opts.capacity), check_balance(opts.balance)
  local normalize = opts.normalize
  if normalize == nil then normalize = opts.router.normalize end
  if normalize == nil then normalize = 'chosen' end
  self.normalize = check_normalize(normalize)
  self.exchange = exchange(opts.exchange, 'moe.Layer')

  local count = opts.experts.count
  self._mesh, self.recompute = opts.mesh or dist.mesh {}, opts.recompute == true
  self._owner = owners(opts.owner, count, self._mesh.ep)
  local here = {}
  local place = math.floor(self._mesh.expert.rank / self._mesh.etp)
  for e = 0, count - 1 do
    if self._owner[e] == place then here[#here + 1] = e end
  end
  self.experts:attach(self.dim, self._mesh, here)
  self.router:attach(count)
  self._counts = stats.counts(count)
end

-- ---- forward -------------------------------------------------------------------------------

-- The factor that holds now, and how survivors are chosen.
local function rule(self)
  local capacity = self.capacity
  if self.training then return capacity.factor, capacity.select end
  return capacity.eval_factor, capacity.select == 'random' and 'probability' or capacity.select
end

-- Priorities of a function of Lua, for this rank's share of the tokens, as the plan takes them.
local function priorities(f, choice, tags, group)
  local p = autograd.no_grad(f, choice, tags)
  local rows, top_k = choice.expert_ids:size(0), choice.expert_ids:size(1)
  if not tensor.is_tensor(p) or p:dim() ~= 2 or p:size(0) ~= rows or p:size(1) ~= top_k then
    status.argument('moe.Layer: capacity.select returned %s, not [%d, %d] priorities',
      tensor.is_tensor(p) and tensor.describe(p) or type(p), rows, top_k)
  end
  p = dist.slice_rows(p, group)
  local values = ffi.new('double[?]', math.max(p:numel(), 1))
  status.check(C.lm_tensor_read(require('lumoe.handle').pointer(p), values, p:numel()))
  return values
end

-- The router's choice for all tokens of the tensor group, and what the plan needs for this rank's share of
-- them, whose tags are `own`. Where other ranks wait, a failure is passed on to the plan, which makes it
-- an error on all of them.
local function prepare(self, x, tags, own, own_valid)
  local choice, wrong = self.router:choose(x, tags)
  if not choice then error(wrong, 0) end
  local group = self._mesh.tensor
  local ids, scores = dist.slice_rows(choice.expert_ids, group), dist.slice_rows(choice.scores:detach():float(), group)
  local factor, select = rule(self)
  local replayed, kept = trace.routes(self.router:path(), { expert_ids = ids, scores = scores }, own.tokens, own_valid)
  ids = replayed or ids
  local spec = { expert_ids = ids:contiguous(), top_k = ids:size(1), scores = scores:contiguous(),
    capacity_factor = factor, replayed = replayed ~= nil }
  if replayed then
    spec.select, spec.priorities = 'priority', kept
  elseif type(select) == 'function' then
    spec.select = 'priority'
    if factor then spec.priorities = priorities(select, choice, tags, group) else spec.select = 'position' end
  else
    spec.select = select
  end
  if factor and spec.select == 'random' then
    local high, low = random.stream(self:path() .. '.capacity')
    spec.seed, spec.stream = C.lm_random_get_seed(), (0ULL + high) * 0x100000000ULL + low
  end
  return choice, spec
end

local function make_plan(self, x, tags, own, own_valid)
  local mesh, ok = self._mesh, true
  local choice, spec
  if mesh.tokens.size == 1 then choice, spec = prepare(self, x, tags, own, own_valid)
  else ok, choice, spec = pcall(prepare, self, x, tags, own, own_valid) end
  if not ok then spec = { error = tostring(choice), top_k = 0 } end
  spec.router, spec.tokens, spec.experts = self.router:path(), own.tokens:size(0), self.experts.count
  spec.token_ids, spec.valid, spec.owner, spec.mesh = own.tokens, own_valid, self._owner, mesh
  spec.exchange = self.exchange
  local made = plan.new(spec)
  if spec.replayed then choice.expert_ids = dist.gather_rows(spec.expert_ids, mesh.tensor, x:size(0)) end
  trace.add(spec.router, made, own.tokens)
  return made, choice
end

local function decide(self, x, tags, own, own_valid)
  local made, choice = make_plan(self, x, tags, own, own_valid)
  return { plan = made, expert_ids = choice.expert_ids }, choice
end

-- The plan and the choice. Where the layer is computed again, the plan is the one of the first time:
-- the router gives its scores anew, and takes the ids as they were.
local function route(self, x, tags, own, own_valid)
  local decided, choice = recompute.once(self:path(), decide, self, x, tags, own, own_valid)
  if not choice then
    choice = self.router:route(x, tags)
    choice.expert_ids = decided.expert_ids
  end
  return decided.plan, choice
end

-- What has arrived at this rank's experts, through them. moe.FFN forgets and computes again by itself.
local function at_experts(arrivals, part, self)
  local experts, again = self.experts, self.recompute
  if experts.takes_tokens then return experts(arrivals, part, nil, again) end
  if again then return recompute(experts, arrivals, part) end
  return experts(arrivals, part)
end

-- The tokens through the experts and back, weighed. Where nothing needs to travel, moe.FFN takes the tokens as they are.
local function through_experts(self, routed, rows, weights)
  if self.experts.takes_tokens and routed:at_home() then return self.experts(rows, routed, weights, self.recompute) end
  return routed:through(rows, weights, at_experts, self)
end

-- The balancers' losses: this rank's part of each.
local function auxiliary(self, choice, routed, valid)
  local total = nil
  if self.training and #self.balance > 0 then
    local seen = batch(routed, valid, self.router:path())
    seen.repeating = recompute.repeating()
    for _, balancer in ipairs(self.balance) do
      local loss = type(balancer) == 'function' and balancer(choice, seen)
        or type(balancer) == 'table' and balancer:balance(choice, seen) or nil
      if loss ~= nil then
        loss = seen:part(loss)
        total = total and total + loss or loss
      end
    end
  end
  return total or tensor.zeros({})
end

--- Tags: valid (padding is 0), tokens (i64 ids of the tokens, for draws), and any others, which the router
-- sees and by which statistics are split; each [batch], [batch, time] or [batch, time, ...].
-- aux is this rank's part of the balancers' losses: the ranks' parts add up to them.
---@param x lumoe.Tensor  [..., dim]
---@param tags table<string, lumoe.Tensor>?
---@return lumoe.Tensor y    [..., dim]; 0 for padding and for tokens all of whose routes were dropped
---@return lumoe.Tensor aux  a scalar
function Layer:forward(x, tags)
  if not tensor.is_tensor(x) then status.argument('moe.Layer: x must be a tensor, not %s', described(x)) end
  local shape = x:shape_table()
  if shape[#shape] ~= self.dim then
    status.argument('moe.Layer: x is %s, but dim is %d', tensor.describe(x), self.dim)
  end
  local lead = { unpack(shape, 1, #shape - 1) }
  local group = self._mesh.tensor
  local flat, valid = tags_of.flatten(tags, lead, self._mesh)
  local own, own_valid = tags_of.slice(flat, valid, group)
  local rows = x:reshape(-1, self.dim)
  local routed, choice = route(self, rows, flat, own, own_valid)

  local weights = routed:weights(dist.slice_rows(choice.scores, group), self.normalize)
  local part_of_y = through_experts(self, routed, dist.slice_rows(rows, group), weights)
  local y = dist.gather_rows(part_of_y, group, rows:size(0))
  if not recompute.repeating() then
    self._counts:add(routed, own)
    self.last_plan = routed
  end
  return y:reshape(shape), auxiliary(self, choice, routed, valid)
end

-- ---- statistics ----------------------------------------------------------------------------

--- How the experts were used since the last reset, over all ranks, which must all ask (moe/stats.lua).
---@param opts { reset?: boolean }?
---@return lumoe.Usage
function Layer:stats(opts)
  local use = self._counts:read(self._mesh)
  if opts and opts.reset then self._counts:reset() end
  return use
end

--- The short form for a log's line, without asking the others: { load, dropped, drop_rate, entropy,
-- max_violation, mean_violation, dead }.
function Layer:summary() return self._counts:summary() end
function Layer:reset_stats() self._counts:reset() end

return Layer
