local lumoe = require 'lumoe'
local naive = dofile 'tests/lua/moe/naive_layer.lua'
local moe = lumoe.moe

local T, DIM, E = 9, 4, 3

local function run(balance, top_k)
  lumoe.manual_seed(3)
  local layer = moe.Layer { dim = DIM, experts = moe.FFN { experts = E, hidden = 2 }, balance = balance,
    router = moe.routers.top_k { dim = DIM, top_k = top_k or 1 }, capacity = { factor = 0.4 } }
  layer:initialize()
  local x = lumoe.randn(T, DIM) * 2
  local valid, m = {}, {}
  for t = 1, T do
    valid[t] = t % 3 ~= 0
    m[t] = valid[t] and 1 or 0
  end
  local _, aux = layer(x, { valid = lumoe.tensor(m, { dtype = 'u8' }) })
  aux:backward()
  local gate, logits = layer.router.gate.weight:totable(), {}
  return layer, aux:item(), x:totable(), valid, gate, logits
end

local function logits_of(gate, row)
  local l = {}
  for e = 1, E do
    l[e] = 0
    for i = 1, DIM do l[e] = l[e] + gate[e][i] * row[i] end
  end
  return l
end

-- The three losses by their formulas, in plain Lua.
local formulas = {
  load = function(layer, x, valid, gate)
    local routed, n, total, P = layer.last_plan:routed(), 0, 0, { 0, 0, 0 }
    for t = 1, T do
      if valid[t] then
        n = n + 1
        local s = naive.softmax(logits_of(gate, x[t]))
        for e = 1, E do P[e] = P[e] + s[e] end
      end
    end
    for e = 1, E do total = total + routed[e] end
    local sum = 0
    for e = 1, E do sum = sum + routed[e] / total * P[e] / n end
    return E * sum
  end,
  importance = function(_, x, valid, gate)
    local I, mean, variance = { 0, 0, 0 }, 0, 0
    for t = 1, T do
      if valid[t] then
        local s = naive.softmax(logits_of(gate, x[t]))
        for e = 1, E do I[e] = I[e] + s[e] end
      end
    end
    for e = 1, E do mean = mean + I[e] / E end
    for e = 1, E do variance = variance + (I[e] - mean) ^ 2 / E end
    return variance / mean ^ 2
  end,
  z = function(_, x, valid, gate)
    local sum, n = 0, 0
    for t = 1, T do
      if valid[t] then
        local lse = 0
        for _, l in ipairs(logits_of(gate, x[t])) do lse = lse + math.exp(l) end
        sum, n = sum + math.log(lse) ^ 2, n + 1
      end
    end
    return sum / n
  end,
}

describe('the balancer', function()
  for name, formula in pairs(formulas) do
    it(name .. ' is its formula, and so is its gradient', function()
      local layer, aux, x, valid, gate = run({ moe.balance[name](0.5) }, 2)
      assert.near(0.5 * formula(layer, x, valid, gate), aux, 1e-5)
      local grad = layer.router.gate.weight.grad:totable()
      for e = 1, E do
        for i = 1, DIM do
          local v, h = gate[e][i], 1e-5
          gate[e][i] = v + h
          local up = formula(layer, x, valid, gate)
          gate[e][i] = v - h
          local down = formula(layer, x, valid, gate)
          gate[e][i] = v
          assert.near(0.5 * (up - down) / (2 * h), grad[e][i], 2e-5)
        end
      end
    end)
  end

  it('load is its weight when all is even', function()
    lumoe.manual_seed(1)
    local ids = {}
    for t = 1, 6 do ids[t] = { t % 3 } end
    local layer = moe.Layer { dim = DIM, experts = moe.FFN { experts = 3, hidden = 2 }, balance = { moe.balance.load(0.01) },
      router = moe.Router { route = function()
        return { scores = lumoe.full({ 6, 3 }, 1 / 3), expert_ids = lumoe.tensor(ids, { dtype = 'i64' }) }
      end } }
    local _, aux = layer(lumoe.randn(6, DIM))
    assert.near(0.01, aux:item(), 1e-7)
  end)

  it('may be any function, or a table that only moves the bias; losses add up', function()
    local seen
    local mover = { balance = function(_, choice, batch)
      assert.equal(E, choice.scores:size(1))
      seen = batch.tokens_per_expert:totable()
    end }
    local layer, aux = run { moe.balance.load(0.5), function(choice, batch)
      return batch:mean(choice.scores):square():sum()
    end, mover }
    assert.same(layer.last_plan:routed(), seen)
    local _, first = run { moe.balance.load(0.5) }
    local _, second = run { function(choice, batch) return batch:mean(choice.scores):square():sum() end }
    assert.near(first + second, aux, 1e-6)
  end)

  it('is silent in evaluation', function()
    local layer = run { moe.balance.load(1) }
    layer:eval()
    local _, aux = layer(lumoe.randn(T, DIM))
    assert.equal(0, aux:item())
  end)

  it('z says which router gives no logits', function()
    local layer = moe.Layer { dim = DIM, experts = moe.FFN { experts = 2, hidden = 2 }, balance = { moe.balance.z(1) },
      router = moe.Router { route = function(_, x)
        return { scores = lumoe.zeros(x:size(0), 2), expert_ids = lumoe.zeros(x:size(0), 1, { dtype = 'i32' }) }
      end } }
    assert.error_matches(function() layer(lumoe.randn(2, DIM)) end, "router 'Router' returns no logits")
  end)
end)
