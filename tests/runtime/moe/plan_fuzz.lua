-- Run by plan_spec.lua, alone and under mpirun: the plan against naive_plan.lua, on batches made
-- to be awkward. Every rank makes the same global batch, and takes its part of it.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local check = require('lumoe.status').check
local naive = dofile 'tests/runtime/moe/naive_plan.lua'

local rounds = tonumber(arg[1])
local rank, size = C.lm_dist_rank(), C.lm_dist_world_size()
local random = math.random
math.randomseed(20240517)

local function pick(list) return list[random(#list)] end

local function group(ranks)
  local out = ffi.new 'lm_group *[1]'
  check(C.lm_group_new(ffi.new('int32_t[?]', #ranks, ranks), #ranks, out))
  return ffi.gc(out[0], C.lm_group_release)
end

local world = {}
for r = 0, size - 1 do world[#world + 1] = r end
local data = group(world)
local expert_groups = { { group = data, size = size, of = function(r) return r end } }
if size == 4 then -- two replicas of the experts, each over two ranks
  local pair = group(rank < 2 and { 0, 1 } or { 2, 3 })
  table.insert(expert_groups, { group = pair, size = 2, of = function(r) return r % 2 end, half = true })
end
local alone = group { rank }
table.insert(expert_groups, { group = alone, size = 1, of = function() return 0 end, alone = true })

local function some_batch()
  local b = {
    experts = pick { 1, 2, 3, 8, 13 }, select = pick { 'random', 'position', 'probability', 'priority' },
    seed = random(0, 2 ^ 31), stream = random(0, 2 ^ 31), wide = random() < 0.5,
    tokens = {}, valid = {}, ids = {}, scores = {}, priorities = {},
  }
  b.top_k = pick { 1, 1, 2, 3, b.experts }
  if random() < 0.8 then b.factor = pick { 0, 0.01, 0.5, 1, 1.1, 1.25, 2, 100 } end
  local count = pick { 0, 1, 2, 7, 40, 100 }
  local skew = pick { 'even', 'one', 'few', 'absent' }
  local id = 0
  for i = 1, count do
    id = id + pick { 1, 1, 1, 5, 2 ^ 32 }
    b.tokens[i] = id
    b.valid[id] = random() < 0.9
    b.ids[id], b.scores[id], b.priorities[id] = {}, {}, {}
    for e = 0, b.experts - 1 do b.scores[id][e] = pick { 0, -0.0, 0.25, -1, random() } end
    for e = 0, b.experts - 1 do b.scores[id][e] = tonumber(ffi.new('float', b.scores[id][e])) end
    for slot = 0, b.top_k - 1 do
      local e = random(0, b.experts - 1)
      if skew == 'one' then e = b.experts - 1 end
      if skew == 'few' then e = math.min(e, random(0, b.experts - 1)) end
      if skew == 'absent' and random() < 0.3 then e = -1 end
      b.ids[id][slot] = e
      b.priorities[id][slot] = pick { 0, -0.0, 1, -1e300, random() }
    end
  end
  return b
end

-- Which rank holds which token: slices (even, uneven, empty) or any which way.
local function deal(b)
  local way, parts = pick { 'slices', 'uneven', 'one', 'any' }, {}
  for r = 0, size - 1 do parts[r] = {} end
  local holder = random(0, size - 1)
  local cuts = {}
  for r = 1, size - 1 do cuts[r] = random(0, #b.tokens) end
  table.sort(cuts)
  for i, t in ipairs(b.tokens) do
    local r = 0
    if way == 'slices' then r = math.floor((i - 1) * size / #b.tokens) end
    if way == 'one' then r = holder end
    if way == 'any' then r = random(0, size - 1) end
    if way == 'uneven' then
      while cuts[r + 1] and i > cuts[r + 1] do r = r + 1 end
    end
    table.insert(parts[r], t)
  end
  if way == 'any' then -- nor in the order of their ids
    for r = 0, size - 1 do
      for i = #parts[r], 2, -1 do
        local j = random(i)
        parts[r][i], parts[r][j] = parts[r][j], parts[r][i]
      end
    end
  end
  return parts
end

local select = { random = 0, position = 1, probability = 2, priority = 3 }

local function make_plan(b, mine, expert_group, owner)
  local n, k, E = #mine, b.top_k, b.experts
  local wide = b.wide
  local ids = ffi.new(wide and 'int64_t[?]' or 'int32_t[?]', n * k + 1)
  local token_ids, valid = ffi.new('int64_t[?]', n + 1), ffi.new('uint8_t[?]', n + 1)
  local scores, priorities = ffi.new('float[?]', n * E + 1), ffi.new('double[?]', n * k + 1)
  for i, t in ipairs(mine) do
    token_ids[i - 1], valid[i - 1] = t, b.valid[t] and 1 or 0
    for e = 0, E - 1 do scores[(i - 1) * E + e] = b.scores[t][e] end
    for s = 0, k - 1 do
      ids[(i - 1) * k + s] = b.ids[t][s]
      priorities[(i - 1) * k + s] = b.priorities[t][s]
    end
  end
  local spec = ffi.new 'lm_plan_spec'
  spec.router = 'fuzz'
  spec.tokens, spec.top_k, spec.experts, spec.select = n, k, E, select[b.select]
  spec.expert_ids, spec.expert_ids_dtype = ids, wide and C.LM_I64 or C.LM_I32
  spec.token_ids, spec.valid, spec.scores, spec.priorities = token_ids, valid, scores, priorities
  local owner_array = owner and ffi.new('int32_t[?]', E, owner)
  spec.owner = owner_array
  spec.capacity_factor = b.factor or -1
  spec.seed, spec.stream = b.seed, b.stream
  local out = ffi.new 'lm_plan *[1]'
  check(C.lm_plan_new(spec, data, expert_group, out))
  return ffi.gc(out[0], C.lm_plan_release)
end

-- The (token, slot) of every row that this rank sends to each of the group, in order.
local function rows_to(plan, b, mine, ranks)
  local lists, row = {}, 0
  for r = 0, ranks - 1 do
    lists[r] = {}
    for _ = 1, tonumber(C.lm_plan_sends(plan)[r]) do
      local route = C.lm_plan_route_of(plan)[row]
      assert(C.lm_plan_row_of(plan)[route] == row, 'row_of undoes route_of')
      table.insert(lists[r], { mine[math.floor(route / b.top_k) + 1], route % b.top_k })
      row = row + 1
    end
  end
  assert(row == C.lm_plan_rows(plan), 'rows')
  return lists
end

-- What arrives at each expert of this rank, as "token:slot" in order, by really exchanging.
local function arrivals(plan, b, mine, eg)
  local lists = rows_to(plan, b, mine, eg.size)
  local sends, receives = ffi.new('int64_t[?]', eg.size), ffi.new('int64_t[?]', eg.size)
  local flat, n = {}, 0
  for r = 0, eg.size - 1 do
    sends[r], receives[r] = 16 * #lists[r], 16 * C.lm_plan_receives(plan)[r]
    n = n + tonumber(C.lm_plan_receives(plan)[r])
    for _, route in ipairs(lists[r]) do table.insert(flat, route) end
  end
  local from, to = ffi.new('int64_t[?]', 2 * #flat + 1), ffi.new('int64_t[?]', 2 * n + 1)
  for i, route in ipairs(flat) do from[2 * i - 2], from[2 * i - 1] = route[1], route[2] end
  check(C.lm_all_to_all_v(eg.group, from, sends, to, receives))
  assert(n == C.lm_plan_arrivals(plan), 'arrivals')
  local seen, arrival_of = {}, C.lm_plan_arrival_of(plan)
  for i = 0, C.lm_plan_local_experts(plan) - 1 do
    local list = {}
    for a = tonumber(C.lm_plan_offsets(plan)[i]), tonumber(C.lm_plan_offsets(plan)[i + 1]) - 1 do
      local at = arrival_of ~= nil and arrival_of[a] or a
      table.insert(list, ('%d:%d'):format(tonumber(to[2 * at]), tonumber(to[2 * at + 1])))
    end
    seen[C.lm_plan_expert_of(plan)[i]] = table.concat(list, ' ')
  end
  return seen
end

local function verify(b, parts, eg, owner)
  local mine, want = parts[rank], naive.plan(b)
  local plan = make_plan(b, mine, eg.group, owner)
  assert(C.lm_plan_capacity(plan) == want.capacity, 'capacity')
  assert(C.lm_plan_valid_tokens(plan) == want.valid_tokens, 'valid_tokens')
  for e = 0, b.experts - 1 do
    assert(C.lm_plan_routed(plan)[e] == want.routed[e], 'routed')
    assert(C.lm_plan_kept(plan)[e] == want.kept[e], 'kept')
  end
  for i, t in ipairs(mine) do
    for s = 0, b.top_k - 1 do
      local kept = b.valid[t] and b.ids[t][s] >= 0 and not want.dropped[t][s]
      assert((C.lm_plan_row_of(plan)[(i - 1) * b.top_k + s] >= 0) == kept, 'dropped')
    end
  end
  -- Which tokens can reach this rank's experts: those of its group.
  local reach = {}
  for r = 0, size - 1 do
    local together = not (eg.alone and r ~= rank) and not (eg.half and (r < 2) ~= (rank < 2))
    for _, t in ipairs(parts[r]) do reach[t] = together end
  end
  local seen, local_experts = arrivals(plan, b, mine, eg), 0
  for e = 0, b.experts - 1 do
    local at = owner and owner[e + 1] or math.floor(e * eg.size / b.experts)
    if at == eg.of(rank) then
      local list = {}
      for _, route in ipairs(want.experts[e]) do
        if reach[route[1]] then table.insert(list, ('%d:%d'):format(route[1], route[2])) end
      end
      assert(seen[e] == table.concat(list, ' '), 'arrivals in order')
      local_experts = local_experts + 1
    end
  end
  assert(local_experts == C.lm_plan_local_experts(plan), 'local experts')

  local again = make_plan(b, mine, eg.group, owner)
  assert(ffi.string(C.lm_plan_hash(plan)) == ffi.string(C.lm_plan_hash(again)), 'hash')
end

for round = 1, rounds do
  local b = some_batch()
  local parts, eg, owner = deal(b), pick(expert_groups), nil
  if random() < 0.5 then
    owner = {}
    for e = 1, b.experts do owner[e] = random(0, eg.size - 1) end
  end
  local ok, message = pcall(verify, b, parts, eg, owner)
  if not ok then
    error(('round %d: %s (%d tokens, %d experts, top %d, factor %s, %s)'):format(round, message,
      #b.tokens, b.experts, b.top_k, b.factor, b.select))
  end
end
if rank == 0 then print(rounds .. ' rounds') end
