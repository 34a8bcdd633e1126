-- Run by exchange_spec.lua, alone and under mpirun: tokens through linear experts and back, forward and
-- backward, against naive_exchange.lua. Every rank makes the same global batch, and takes its part.
local ffi = require 'ffi'
local lumoe = require 'lumoe'
local exchanges = require 'lumoe.moe.exchange'
local plan = require 'lumoe.moe.plan'
local batches = dofile 'tests/runtime/moe/some_batch.lua'
local naive_plan = dofile 'tests/runtime/moe/naive_plan.lua'
local naive = dofile 'tests/runtime/moe/naive_exchange.lua'
local naive_traffic = dofile 'tests/runtime/moe/naive_traffic.lua'
local dist = lumoe.dist

local rounds = tonumber(arg[1])
local rank, size = dist.rank(), dist.world_size()
local random, pick = math.random, batches.pick
math.randomseed(20240611)

-- ---- the mesh: all ranks have tokens; the experts are spread over all, or over half ---------

local function range(first, count)
  local list = {}
  for i = 1, count do list[i] = first + i - 1 end
  return list
end

local data = dist.world()
local expert_groups = { data }
if size > 1 then table.insert(expert_groups, dist.group { rank }) end
if size > 2 and size % 2 == 0 then
  table.insert(expert_groups, dist.group(range(rank < size / 2 and 0 or size / 2, size / 2)))
end

local function divisors(n)
  local list = {}
  for d = 1, n do
    if n % d == 0 then list[#list + 1] = d end
  end
  return list
end

-- ---- a batch as tensors --------------------------------------------------------------------

local function tensor(rows, columns, f, opts)
  if rows * columns == 0 then return lumoe.zeros({ rows, columns }, opts) end
  local t = {}
  for i = 1, rows do
    t[i] = {}
    for j = 1, columns do t[i][j] = f(i, j - 1) end
  end
  return lumoe.tensor(t, opts)
end

local function make_plan(b, mine, mesh, owner)
  local n, k = #mine, b.top_k
  local ids = lumoe.zeros({ n }, { dtype = 'i64' })
  if n > 0 then ids = lumoe.tensor(mine, { dtype = 'i64' }) end
  local priorities = ffi.new('double[?]', n * k + 1)
  for i, t in ipairs(mine) do
    for s = 0, k - 1 do priorities[(i - 1) * k + s] = b.priorities[t][s] end
  end
  return plan.new {
    router = 'fuzz', tokens = n, top_k = k, experts = b.experts, mesh = mesh, select = b.select,
    expert_ids = tensor(n, k, function(i, s) return b.ids[mine[i]][s] end, { dtype = 'i32' }),
    valid = tensor(n, 1, function(i) return b.valid[mine[i]] and 1 or 0 end, { dtype = 'u8' }),
    scores = tensor(n, b.experts, function(i, e) return b.scores[mine[i]][e] end),
    token_ids = ids, priorities = priorities, capacity_factor = b.factor, seed = b.seed, stream = b.stream,
    exchange = exchanges(mesh.exchange, 'fuzz'), owner = owner and ffi.new('int32_t[?]', b.experts, owner),
  }
end

-- Local experts of a rank: slice j of etp of A's rows and B's columns.
local function weights(ids, dim, first, last)
  local a, b = {}, {}
  for i, e in ipairs(ids) do
    a[i], b[i] = {}, {}
    for h = first, last - 1 do
      a[i][h - first + 1] = {}
      for d = 0, dim - 1 do a[i][h - first + 1][d + 1] = naive.a(e, h, d) end
    end
    for d = 0, dim - 1 do
      b[i][d + 1] = {}
      for h = first, last - 1 do b[i][d + 1][h - first + 1] = naive.b(e, d, h) end
    end
  end
  if #ids == 0 or first == last then
    return lumoe.zeros { #ids, last - first, dim }, lumoe.zeros { #ids, dim, last - first }
  end
  return lumoe.tensor(a), lumoe.tensor(b)
end

-- ---- comparing -----------------------------------------------------------------------------

local tolerance, least -- so much of the largest number, or of `least` where all are small

-- got: a table of tables, or nil where there were no numbers; want(i, j) from 1.
local function compare(what, got, rows, columns, want)
  local most, off = least, 0
  for i = 1, rows do
    for j = 1, columns do
      local w, g = want(i, j), got and got[i][j] or 0
      assert(g == g, what .. ' is NaN')
      most, off = math.max(most, math.abs(w)), math.max(off, math.abs(w - g))
    end
  end
  assert(off <= tolerance * most, ('%s is off by %g of %g'):format(what, off, most))
end

-- The tokens of each rank in part i of n.
local function part_of(parts, i, n)
  local some = {}
  for r, tokens in pairs(parts) do
    some[r] = {}
    for t = math.floor(#tokens * (i - 1) / n) + 1, math.floor(#tokens * i / n) do table.insert(some[r], tokens[t]) end
  end
  return some
end

-- The counters are the naive count, exactly.
local function compare_traffic(routed, b, kept, parts, mesh, owner, dim, hidden, bytes)
  local ranks = mesh.expert.ranks
  local places, me = #ranks / mesh.etp, mesh.expert.rank + 1
  local o = setmetatable({ etp = mesh.etp, place_of = function(e)
    return owner and owner[e + 1] or math.floor(e * places / b.experts)
  end }, { __index = mesh.exchange })
  if not o.hosts then
    o.hosts = {}
    for j, r in ipairs(ranks) do o.hosts[j] = dist.host(r) end
  end
  if #ranks == 1 then o.once = false end
  o.shadow, o.weights, o.bytes = {}, { dim * hidden, dim * hidden }, bytes
  local mean, over = 0, #ranks > 1 and mesh.exchange.shadow
  for e = 0, b.experts - 1 do mean = mean + kept.kept[e] / b.experts end
  for e = 0, b.experts - 1 do o.shadow[e] = over and kept.kept[e] > over * mean or nil end
  local shadows = {}
  for e = 0, b.experts - 1 do shadows[#shadows + 1] = o.shadow[e] and e or nil end
  assert(table.concat(shadows, ' ') == table.concat(routed:shadows(), ' '), 'shadows')
  local want, got = {}, routed:traffic()
  for i = 1, o.parts do
    want[i] = naive_traffic.traffic(b, kept, part_of(parts, i, o.parts), ranks, o, bytes * dim)
  end
  for leg in pairs(got) do
    for j = 1, leg ~= 'plan' and #ranks or 0 do
      for i, what in ipairs { 'rows', 'bytes', 'messages' } do
        local n, w = got[leg][what][j], 0
        for _, part in ipairs(want) do w = w + part[leg][me][j][i] end
        assert(n == w, ('%s of %s to %d: %d, not %d'):format(what, leg, j, n, w))
      end
    end
  end
  return got
end

-- What the transport has counted to this rank's peers since `before`, but for making the plan.
local function compare_counters(got, before, ranks)
  for i, sent in ipairs(dist.counters()) do
    for _, what in ipairs { 'rows', 'bytes', 'messages' } do
      local n = 0
      for j, r in ipairs(ranks) do
        for leg, of in pairs(got) do n = n + (r == i - 1 and leg ~= 'plan' and of[what][j] or 0) end
      end
      local w = sent[what] - before[i][what]
      assert(n == w, ('the transport counted %d %s to %d, the plan %d'):format(w, what, i - 1, n))
    end
  end
end

local function table_of(t) return t ~= nil and t:numel() > 0 and t:totable() or nil end

-- learn: which of x, w (weights), A, B want a gradient; dtype of all but w.
local function verify(b, parts, mesh, owner, dim, hidden, learn, dtype)
  tolerance, least = dtype == 'f32' and 1e-5 or 0.06, dtype == 'f32' and 0.1 or 1
  local mine, kept = parts[rank], naive_plan.plan(b)
  local routed = make_plan(b, mine, mesh, owner)
  local slice = mesh.expert.rank % mesh.etp
  local first, last = math.floor(hidden * slice / mesh.etp), math.floor(hidden * (slice + 1) / mesh.etp)
  local experts = routed:local_experts()
  local A, B = weights(experts, dim, first, last)
  local x = tensor(#mine, dim, function(i, d) return naive.x(mine[i], d) end)
  local w = tensor(#mine, b.top_k, function(i, s) return naive.weight(mine[i], s) end)
  local g = tensor(#mine, dim, function(i, d) return naive.g(mine[i], d) end)
  A, B, x, g = A:to(dtype), B:to(dtype), x:to(dtype), g:to(dtype)
  for name, t in pairs { A = A, B = B, x = x, w = w } do t.requires_grad = learn[name] == true end
  local before = dist.counters()

  local y = routed:through(x, w, function(arrivals, part) return part:linear(part:linear(arrivals, A), B) end)
  local nothing = next(learn) == nil
  if not nothing then (y * g):float():sum():backward() end

  local ny, dx, dw = naive.tokens(b, kept, mine, dim, hidden)
  compare('y', table_of(y), #mine, dim, function(i, d) return ny[mine[i]][d - 1] end)
  local function gradient(what, ...)
    if learn[what:sub(2)] then compare(what, ...) end
  end
  gradient('dx', table_of(x.grad), #mine, dim, function(i, d) return dx[mine[i]][d - 1] end)
  gradient('dw', table_of(w.grad), #mine, b.top_k, function(i, s) return dw[mine[i]][s - 1] end)
  if learn.x and learn.w and learn.A and learn.B then
    local bytes = dtype == 'f32' and 4 or 2
    compare_counters(compare_traffic(routed, b, kept, parts, mesh, owner, dim, hidden, bytes), before, mesh.expert.ranks)
  end
  local reach = {} -- the tokens whose ranks share this rank's experts
  for _, r in ipairs(mesh.expert.ranks) do
    for _, t in ipairs(parts[r]) do reach[#reach + 1] = t end
  end
  local A_grad, B_grad = table_of(A.grad), table_of(B.grad)
  for i, e in ipairs(experts) do
    local da, db = naive.expert(b, kept, reach, e, dim, hidden)
    gradient('dA', A_grad and A_grad[i], last - first, dim, function(h, d) return da[first + h - 1][d - 1] end)
    gradient('dB', B_grad and B_grad[i], dim, last - first, function(d, h) return db[d - 1][first + h - 1] end)
  end
end

for round = 1, rounds do
  local b = batches.some()
  local parts, expert = batches.deal(b, size), pick(expert_groups)
  local etp, owner = pick(divisors(expert.size)), nil
  local dim, hidden = pick { 1, 3, 8 }, pick { 1, 4, 7 }
  if random() < 0.5 then
    owner = {}
    for e = 1, b.experts do owner[e] = random(0, expert.size / etp - 1) end
  end
  local exchange = { once = random() < 0.5, way = pick { 'direct', 'padded', 'two_level', 'two_level' }, hosts = {},
    parts = pick { 1, 1, 2, 3, 5 } }
  if etp == 1 then exchange.shadow = pick { false, false, 0.01, 1.5, 2 } or nil end
  for r = 1, expert.size do exchange.hosts[r] = random(1, 3) end
  if random() < 0.3 then exchange.hosts = nil end
  local mesh = { data = data, tokens = data, expert = expert, etp = etp, exchange = exchange }
  local learn, dtype = { x = true, w = true, A = true, B = true }, pick { 'f32', 'f32', 'f32', 'bf16' }
  if random() < 0.3 then
    for _, name in ipairs { 'x', 'w', 'A', 'B' } do learn[name] = random() < 0.4 or nil end
  end
  local ok, message = pcall(verify, b, parts, mesh, owner, dim, hidden, learn, dtype)
  if not ok then
    local batch = ('%d tokens, %d experts, top %d, factor %s, %s'):format(#b.tokens, b.experts, b.top_k, b.factor, b.select)
    error(('round %d: %s (%s; %s, %d ranks, etp %d, once %s, %s, %d parts, shadow %s)'):format(round, message, batch,
      dtype, expert.size, etp, exchange.once, exchange.way, exchange.parts, exchange.shadow))
  end
end
if rank == 0 then print(rounds .. ' rounds') end
