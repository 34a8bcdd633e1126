--- What dispatch, linear experts and combine give, and their gradients: one process, plain Lua numbers.
-- An expert is B A x, A [hidden, dim] and B [dim, hidden]; the loss is the sum of y * g.
local naive = {}

-- A number between -1 and 1 that looks like none of its neighbours.
local function number(...)
  local h = 0.5
  for _, n in ipairs { ... } do h = (h * 61.7 + n % 1048573 * 0.7548776662) % 1 end
  return 2 * h - 1
end

--- Everything's values, by ids alone, so that each rank makes its own.
naive.x = function(token, d) return number(1, token, d) end
naive.weight = function(token, slot) return number(2, token, slot) end
naive.g = function(token, d) return number(3, token, d) end
naive.a = function(e, h, d) return number(4, e, h, d) end
naive.b = function(e, d, h) return number(5, e, d, h) end

local function zeros(...)
  local n, t = ..., {}
  for i = 0, n - 1 do t[i] = select('#', ...) > 1 and zeros(select(2, ...)) or 0 end
  return t
end

--- The routes of a token that were kept: { slot, expert }.
local function routes(b, plan, t)
  local kept = {}
  for s = 0, b.top_k - 1 do
    if b.valid[t] and b.ids[t][s] >= 0 and not plan.dropped[t][s] then kept[#kept + 1] = { s, b.ids[t][s] } end
  end
  return kept
end
naive.routes = routes

--- y[t][d], dx[t][d], dweight[t][s] of the tokens of a batch (some_batch.lua); plan: naive_plan's.
function naive.tokens(b, plan, tokens, dim, hidden)
  local y, dx, dweight = {}, {}, {}
  for _, t in ipairs(tokens) do
    y[t], dx[t], dweight[t] = zeros(dim), zeros(dim), zeros(b.top_k)
    for _, route in ipairs(routes(b, plan, t)) do
      local s, e = route[1], route[2]
      local w = naive.weight(t, s)
      for h = 0, hidden - 1 do
        local ax, bg = 0, 0
        for d = 0, dim - 1 do
          ax = ax + naive.a(e, h, d) * naive.x(t, d)
          bg = bg + naive.b(e, d, h) * naive.g(t, d)
        end
        for d = 0, dim - 1 do
          y[t][d] = y[t][d] + w * naive.b(e, d, h) * ax
          dx[t][d] = dx[t][d] + w * naive.a(e, h, d) * bg
        end
        dweight[t][s] = dweight[t][s] + ax * bg
      end
    end
  end
  return y, dx, dweight
end

--- da[h][d] and db[d][h] of expert e, over the given tokens.
function naive.expert(b, plan, tokens, e, dim, hidden)
  local da, db = zeros(hidden, dim), zeros(dim, hidden)
  for _, t in ipairs(tokens) do
    for _, route in ipairs(routes(b, plan, t)) do
      local w = route[2] == e and naive.weight(t, route[1]) or 0
      for h = 0, w ~= 0 and hidden - 1 or -1 do
        local ax, bg = 0, 0
        for d = 0, dim - 1 do
          ax = ax + naive.a(e, h, d) * naive.x(t, d)
          bg = bg + naive.b(e, d, h) * naive.g(t, d)
        end
        for d = 0, dim - 1 do
          da[h][d] = da[h][d] + w * bg * naive.x(t, d)
          db[d][h] = db[d][h] + w * ax * naive.g(t, d)
        end
      end
    end
  end
  return da, db
end

return naive
