--- Routings that are the same for all programs: which experts see each token.
-- Every system routes as it always does, by scores of its own gate; but to the logits of the experts that are chosen
-- here, 10 is added, and so its top k are these.
local routing = {}

local function shuffled(n, random)
  local list = {}
  for i = 1, n do list[i] = i end
  for i = n, 2, -1 do
    local j = random(i)
    list[i], list[j] = list[j], list[i]
  end
  return list
end

-- Every expert gets as many tokens as any other, or one more.
local function balanced(tokens, experts, top_k, random)
  local ids, order, next_expert = {}, shuffled(tokens, random), 0
  for i = 1, tokens * top_k do ids[i] = 0 end
  for _, token in ipairs(order) do
    for slot = 1, top_k do
      ids[(token - 1) * top_k + slot] = next_expert
      next_expert = (next_expert + 1) % experts
    end
  end
  return ids
end

-- The r-th most popular expert is drawn with a weight of 1 / r; a token's experts differ.
local function zipf(tokens, experts, top_k, random)
  local ids, place = {}, shuffled(experts, random)
  for token = 0, tokens - 1 do
    local weight, total = {}, 0
    for r = 1, experts do
      weight[r] = 1 / r
      total = total + weight[r]
    end
    for slot = 1, top_k do
      local left, r = random() * total, 1
      while r < experts and (weight[r] == 0 or left >= weight[r]) do
        left, r = left - weight[r], r + 1
      end
      while weight[r] == 0 do r = r - 1 end -- rounding may lead past the last
      ids[token * top_k + slot] = place[r] - 1
      total, weight[r] = total - weight[r], 0
    end
  end
  return ids
end

local KINDS = { balanced = balanced, zipf = zipf }

--- tokens × top_k ids, counted from 0.
---@param kind 'balanced'|'zipf'
---@return integer[]
function routing.ids(kind, tokens, experts, top_k)
  math.randomseed(7)
  return KINDS[kind](tokens, experts, top_k, math.random)
end

--- How many routes the busiest expert has, and how many experts have any.
function routing.load(ids, experts)
  local count, most, used = {}, 0, 0
  for e = 0, experts - 1 do count[e] = 0 end
  for _, e in ipairs(ids) do
    used = used + (count[e] == 0 and 1 or 0)
    count[e] = count[e] + 1
    most = math.max(most, count[e])
  end
  return most, used
end

return routing
