-- Run by plan_spec.lua, alone and under mpirun: the plan against naive_plan.lua, on batches made
-- to be awkward. Every rank makes the same global batch, and takes its part of it.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local check = require('lumoe.status').check
local naive = dofile 'tests/runtime/moe/naive_plan.lua'
local batches = dofile 'tests/runtime/moe/some_batch.lua'

local rounds = tonumber(arg[1])
local rank, size = C.lm_dist_rank(), C.lm_dist_world_size()
local random, pick = math.random, batches.pick
math.randomseed(20240517)

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

local select = { random = 0, position = 1, probability = 2, priority = 3 }

local function make_plan(b, mine, expert_group, owner, etp)
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
  spec.owner, spec.etp = owner_array, etp
  spec.capacity_factor = b.factor or -1
  spec.seed, spec.stream = b.seed, b.stream
  local out = ffi.new 'lm_plan *[1]'
  check(C.lm_plan_new(spec, data, expert_group, out))
  return ffi.gc(out[0], C.lm_plan_release)
end

-- The (token, slot) of every row that this rank sends to each of the group, in order: to all etp
-- ranks of a place the same.
local function rows_to(plan, b, mine, ranks, etp)
  local lists, row = {}, 0
  for r = 0, ranks - 1 do
    lists[r] = {}
    if r % etp > 0 then row = row - #lists[r - 1] end
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
local function arrivals(plan, b, mine, eg, etp)
  local lists = rows_to(plan, b, mine, eg.size, etp)
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

local function verify(b, parts, eg, owner, etp)
  local mine, want = parts[rank], naive.plan(b)
  local plan = make_plan(b, mine, eg.group, owner, etp)
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
  local seen, local_experts = arrivals(plan, b, mine, eg, etp), 0
  for e = 0, b.experts - 1 do
    local at = owner and owner[e + 1] or math.floor(e * (eg.size / etp) / b.experts)
    if at == math.floor(eg.of(rank) / etp) then
      local list = {}
      for _, route in ipairs(want.experts[e]) do
        if reach[route[1]] then table.insert(list, ('%d:%d'):format(route[1], route[2])) end
      end
      assert(seen[e] == table.concat(list, ' '), 'arrivals in order')
      local_experts = local_experts + 1
    end
  end
  assert(local_experts == C.lm_plan_local_experts(plan), 'local experts')

  local again = make_plan(b, mine, eg.group, owner, etp)
  assert(ffi.string(C.lm_plan_hash(plan)) == ffi.string(C.lm_plan_hash(again)), 'hash')
end

for round = 1, rounds do
  local b = batches.some()
  local parts, eg, owner = batches.deal(b, size), pick(expert_groups), nil
  local etp = pick { 1, eg.size, eg.size % 2 == 0 and 2 or 1 }
  if random() < 0.5 then
    owner = {}
    for e = 1, b.experts do owner[e] = random(0, eg.size / etp - 1) end
  end
  local ok, message = pcall(verify, b, parts, eg, owner, etp)
  if not ok then
    error(('round %d: %s (%d tokens, %d experts, top %d, factor %s, %s, etp %d)'):format(round, message,
      #b.tokens, b.experts, b.top_k, b.factor, b.select, etp))
  end
end
if rank == 0 then print(rounds .. ' rounds') end
