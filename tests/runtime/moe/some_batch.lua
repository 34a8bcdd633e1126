--- Batches made to be awkward, and ways to deal their tokens to ranks. Every rank draws the same ones.
local ffi = require 'ffi'

local batches = {}
local random = math.random

local function pick(list) return list[random(#list)] end
batches.pick = pick

--- A batch as naive_plan.lua takes it.
function batches.some()
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

--- Which of `size` ranks holds which token: slices (even, uneven, empty) or any which way.
function batches.deal(b, size)
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

return batches
