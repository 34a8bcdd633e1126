--- The plan of a micro-batch, the slow way: one process, plain Lua, no thought for ranks.
local ffi = require 'ffi'
local bit = require 'bit'

local naive = {}

local u64 = ffi.typeof 'uint64_t'

local function mix(h, x)
  h = h + x + 0x9E3779B97F4A7C15ULL
  h = bit.bxor(h, bit.rshift(h, 30)) * 0xBF58476D1CE4E5B9ULL
  h = bit.bxor(h, bit.rshift(h, 27)) * 0x94D049BB133111EBULL
  return bit.bxor(h, bit.rshift(h, 31))
end

local function low(x) return bit.band(x, 0xffffffffULL) end
local function high(x) return bit.rshift(x, 32) end

--- Philox4x32-10 (Salmon et al. 2011), words as u64. Gives the first two.
local function philox(seed, stream, block)
  local k0, k1 = low(seed), high(seed)
  local c0, c1, c2, c3 = low(block), high(block), low(stream), high(stream)
  for _ = 1, 10 do
    local p0, p1 = 0xD2511F53ULL * c0, 0xCD9E8D57ULL * c2
    c0, c1, c2, c3 = bit.bxor(high(p1), c1, k0), low(p1), bit.bxor(high(p0), c3, k1), low(p0)
    k0, k1 = low(k0 + 0x9E3779B9ULL), low(k1 + 0xBB67AE85ULL)
  end
  return c0, c1
end

local keys = {
  random = function(b, token, slot)
    local seed = mix(u64(b.seed), u64(b.stream))
    local a, c = philox(seed, u64(token), u64(slot))
    return bit.bor(bit.lshift(c, 32), a)
  end,
  position = function(_, _, slot) return slot end,
  probability = function(b, token, _, e) return -b.scores[token][e] end,
  priority = function(b, token, slot) return -b.priorities[token][slot] end,
}

--- b: tokens (a list of global ids), valid[token], ids[token][slot], experts, top_k, factor or nil,
--- select, and what the keys need. Gives { capacity, routed[e], kept[e], experts[e] = list of
--- {token, slot} in the order in which the expert sees them, dropped[token][slot] }.
function naive.plan(b)
  local T, routes = 0, {}
  for e = 0, b.experts - 1 do routes[e] = {} end
  local tokens = {}
  for _, t in ipairs(b.tokens) do tokens[#tokens + 1] = t end
  table.sort(tokens)
  for _, t in ipairs(tokens) do
    if b.valid[t] then
      T = T + 1
      for slot = 0, b.top_k - 1 do
        local e = b.ids[t][slot]
        if e >= 0 then table.insert(routes[e], { t, slot, key = keys[b.select](b, t, slot, e) }) end
      end
    end
  end

  local plan = { routed = {}, kept = {}, experts = {}, dropped = {}, valid_tokens = T }
  local exact = b.factor and b.factor * b.top_k * T / b.experts
  plan.capacity = b.factor and math.ceil(exact - 1e-9 * math.max(exact, 1)) or -1
  for _, t in ipairs(tokens) do plan.dropped[t] = {} end
  for e = 0, b.experts - 1 do
    local line = {}
    for i, route in ipairs(routes[e]) do line[i] = route end
    table.sort(line, function(x, y)
      if x.key ~= y.key then return x.key < y.key end
      if x[1] ~= y[1] then return x[1] < y[1] end
      return x[2] < y[2]
    end)
    if b.factor then
      for i = plan.capacity + 1, #line do plan.dropped[line[i][1]][line[i][2]] = true end
    end
    plan.routed[e], plan.experts[e] = #line, {}
    for _, route in ipairs(routes[e]) do
      if not plan.dropped[route[1]][route[2]] then table.insert(plan.experts[e], route) end
    end
    plan.kept[e] = #plan.experts[e]
  end
  return plan
end

return naive
