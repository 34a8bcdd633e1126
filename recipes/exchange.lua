--- What goes over the wire of one MoE layer: rows, bytes and messages of each way to exchange tokens, counted in
-- forward and backward where they leave, and compared with what they should be.
--
--   LUMOE_HOSTS=4,4 ./lumoe -np 8 recipes/exchange.lua                 8 ranks, as if on two hosts
--   LUMOE_HOSTS=4,4 ./lumoe -np 8 recipes/exchange.lua --routing skewed --json FILE
--
-- Routing: `turning`, token t's experts are t, t + E/k, ...: even to the row, so that a dispatch carries exactly
-- k T (1 - 1/R) rows; `random`, any k different experts, of which a token's rows that go to each rank once are
-- T (R - 1) (1 - C(E - E/R, k) / C(E, k)) in expectation; `skewed`, some experts liked much more than others;
-- `grouped`, as random, but every E/k-th expert is liked by the same tokens. `placed`: where each expert lives follows
-- from what the first plan showed (moe/policies/placement.lua), else neighbours live together. `shadows`: experts with
-- more than twice the mean load come to the tokens.
-- The busiest rank: its routes, over what each would have if all had the same.
-- Ends with 1 when a counter is not what counting the routes by hand gives, or `turning` misses its closed form.
local lumoe = require 'lumoe'
local parser = require 'recipes.parser'
local count = require('recipes.translate.options').count
local figures = require 'recipes.figures'
local dist, moe = lumoe.dist, lumoe.moe
local placement = moe.policies.placement

local p = parser('lumoe recipes/exchange.lua', 'Rows, bytes and messages of the exchanges of an MoE layer.')
p:option('--experts', 'Experts', '64'):convert(count(1)):argname 'N'
p:option('--top-k', 'Experts of a token', '8'):convert(count(1)):argname 'N'
p:option('--dim', 'Size of a token', '16'):convert(count(1)):argname 'N'
p:option('--tokens', 'Of each rank', '256'):convert(count(1)):argname 'N'
p:option('--routing', 'turning, random, skewed or grouped; may be given again (all)'):count '*'
  :choices { 'turning', 'random', 'skewed', 'grouped' }
p:option('--json', 'Where the figures go as well'):argname 'FILE'
local opts = p:parse()
if opts.top_k > opts.experts then p:error(('--top-k %d: there are only %d experts'):format(opts.top_k, opts.experts)) end
local write = figures(opts.json)

local EXPERTS, K, DIM, TOKENS = opts.experts, opts.top_k, opts.dim, opts.tokens
local rank, ranks = dist.rank(), dist.world_size()
local mesh = dist.mesh { ep = ranks }
local ROUTINGS = #opts.routing > 0 and opts.routing or { 'turning', 'random', 'skewed', 'grouped' }
local EXCHANGES = {
  { 'rows', {} }, { 'once', { once = true } }, { 'padded', { way = 'padded' } }, { 'two_level', { way = 'two_level' } },
  { 'once, two_level', { once = true, way = 'two_level' } }, { 'once, in 4 parts', { once = true, parts = 4 } },
  { 'once, placed', { once = true }, placed = true }, { 'once, shadows', { once = true, shadow = 2 } },
}
local HOSTS = {}
for r = 1, ranks do HOSTS[r] = dist.host(mesh.expert.ranks[r]) end

-- ---- routing -------------------------------------------------------------------------------

local choices = {
  turning = function(x)
    local ids = {}
    for t = 1, x:size(0) do
      ids[t] = {}
      for s = 1, K do ids[t][s] = math.floor(t + (s - 1) * EXPERTS / K) % EXPERTS end
    end
    return lumoe.full({ x:size(0), EXPERTS }, 1 / EXPERTS), lumoe.tensor(ids, { dtype = 'i64' })
  end,
  random = function(x, tags)
    local scores = lumoe.rand(x:size(0), EXPERTS, { site = 'recipe.route', rows = tags.tokens })
    local _, ids = scores:topk(K)
    return scores, ids
  end,
  skewed = function(x, tags)
    local scores = lumoe.rand(x:size(0), EXPERTS, { site = 'recipe.route', rows = tags.tokens })
    local _, ids = (scores + lumoe.arange(EXPERTS):float() * (-1.5 / EXPERTS)):topk(K)
    return scores, ids
  end,
}

-- A token likes the experts of its group more than others, and one of them not so much.
function choices.grouped(x, tags)
  local groups = EXPERTS / K
  local scores = lumoe.rand(x:size(0), EXPERTS, { site = 'recipe.route', rows = tags.tokens })
  local liked = {}
  for t = 1, x:size(0) do
    liked[t] = {}
    for e = 1, EXPERTS do liked[t][e] = (e - 1) % groups == math.floor(t * 0.618 * groups) % groups and 0.85 or 0 end
  end
  local _, ids = (scores + lumoe.tensor(liked)):topk(K)
  return scores, ids
end

local function layer(routing, exchange, owner)
  return moe.Layer {
    dim = DIM, mesh = mesh, exchange = exchange, owner = owner, experts = moe.FFN { experts = EXPERTS, hidden = DIM },
    router = moe.Router { top_k = K, route = function(_, x, tags)
      local scores, ids = choices[routing](x, tags)
      return { scores = scores, expert_ids = ids }
    end },
  }
end

-- ---- counting by hand ----------------------------------------------------------------------

-- Rows that a dispatch takes to each other rank, by following every token.
local function by_hand(plan, once, owner)
  local rows, at_home = {}, {}
  for _, e in ipairs(plan:shadows()) do at_home[e] = true end
  for r = 1, ranks do rows[r] = 0 end
  for t = 0, plan.tokens - 1 do
    local been = {}
    for _, route in ipairs(plan:route_of(t)) do
      local r = owner and owner[route.expert + 1] or math.floor(route.expert * ranks / EXPERTS)
      if at_home[route.expert] then r = rank end
      if r ~= rank and not (once and been[r]) then rows[r + 1] = rows[r + 1] + 1 end
      been[r] = true
    end
  end
  return rows
end

-- C(n - m, k) / C(n, k): that none of k different ones of n is among m.
local function none_of(m, n, k)
  local share = 1
  for i = 0, k - 1 do share = share * math.max(n - m - i, 0) / (n - i) end
  return share
end

-- Rows of a dispatch: in expectation where routing is random; nil where it says nothing.
local function closed_form(routing, once)
  local others = TOKENS * (ranks - 1) -- tokens of the other ranks, for each
  if not once then return K * others end
  if routing == 'random' then
    local rows = 0
    for r = 0, ranks - 1 do rows = rows + others * (1 - none_of(select(2, dist.share(EXPERTS, r, ranks)), EXPERTS, K)) end
    return rows
  end
  local even = EXPERTS % K == 0 and EXPERTS % ranks == 0 -- then a token's experts are on as many ranks as can be
  return even and math.min(K, ranks) * others or nil
end

-- ---- the figures ---------------------------------------------------------------------------

local function sum(value) return dist.reduce_number(value) end

local function measure(routing, name, exchange, owner)
  lumoe.manual_seed(1)
  local moe_layer = layer(routing, exchange, owner)
  moe_layer:initialize()
  local x = lumoe.randn(TOKENS, DIM)
  x.requires_grad = true
  local y = moe_layer(x)
  y:square():sum():backward()
  local plan = moe_layer.last_plan
  local traffic, hosts = plan:traffic(), plan:between_hosts()
  local row = { routing = routing, exchange = name, rows = 0, bytes = 0, messages = 0, host_bytes = 0, host_messages = 0 }
  for r = 1, ranks do
    row.rows = row.rows + traffic.dispatch.rows[r]
    for _, leg in pairs(traffic) do
      row.bytes, row.messages = row.bytes + leg.bytes[r], row.messages + leg.messages[r]
    end
  end
  row.busiest = dist.reduce_number(plan:arrivals(), 'max') / (sum(plan:arrivals()) / ranks)
  local right = 1 -- exactly what goes straight to its place can be followed by hand
  if exchange.way == nil then
    for r, n in ipairs(by_hand(plan, exchange.once, owner)) do right = traffic.dispatch.rows[r] == n and right or 0 end
  end
  for _, what in ipairs { 'rows', 'bytes', 'messages' } do row[what] = sum(row[what]) end
  for from, line in ipairs(hosts) do
    for to, sent in ipairs(line) do
      if from ~= to then
        row.host_bytes, row.host_messages = row.host_bytes + sent.bytes, row.host_messages + sent.messages
      end
    end
  end
  if not (exchange.way or exchange.shadow or owner) and (routing == 'turning' or routing == 'random') then
    row.expected = closed_form(routing, exchange.once)
  end
  row.ok = sum(1 - right) == 0 and (routing ~= 'turning' or row.expected == nil or row.rows == row.expected)
  return row, plan
end

local lead, list, ok = rank == 0, {}, true
if lead then
  print(('%d ranks, %d tokens each of size %d, top %d of %d experts; one layer forward and backward, over all ranks')
    :format(ranks, TOKENS, DIM, K, EXPERTS))
  print 'routing  exchange          rows of a dispatch  closed form    bytes  messages  between hosts: bytes  messages  busiest rank'
end
for _, routing in ipairs(ROUTINGS) do
  local counts = placement.counts(EXPERTS)
  for _, exchange in ipairs(EXCHANGES) do
    local owner = exchange.placed and placement.place(counts, { places = ranks, hosts = HOSTS, slack = 0.2 }) or nil
    local row, plan = measure(routing, exchange[1], exchange[2], owner)
    if exchange[1] == 'rows' then counts:add(plan):reduce(mesh.expert) end
    list[#list + 1], ok = row, ok and row.ok
    if lead then
      print(('%-8s %-17s %18d  %11s %8d %9d %21d %9d %11.2f x%s'):format(row.routing, row.exchange, row.rows,
        row.expected and ('%.1f'):format(row.expected) or '', row.bytes, row.messages, row.host_bytes, row.host_messages, row.busiest,
        row.ok and '' or '  WRONG'))
    end
  end
end
write(list)
dist.barrier()
os.exit(ok and 0 or 1, true)
