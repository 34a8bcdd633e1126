-- Run by invariance_spec.lua: models, batches and layouts drawn at random, as SEED says; COUNT of them.
-- What is drawn is printed when it is not the same as one process.
local lumoe = require 'lumoe'
local LanguageModel = require 'recipes.check_layouts.model'
local dist = lumoe.dist
local rank, size = dist.rank(), dist.world_size()

local state = tonumber(arg[1])
local function draw(n) -- 1 to n: Park and Miller's generator, the same on all ranks
  state = state * 48271 % 2147483647
  return 1 + state % n
end
local function one_of(list) return list[draw(#list)] end

-- At least as many heads, hidden columns and pieces as ranks share them; the rest does not divide.
local function options()
  local heads = size * draw(2)
  local experts = 1 + draw(2 * size + 3)
  local top_k = math.min(experts, one_of { 1, 1, 2, 2, 3, 8 })
  return { dim = heads * one_of { 4, 8 }, heads = heads, hidden = size + draw(20), layers = draw(3), vocab = size + draw(30),
    experts = experts, top_k = top_k, capacity = one_of { 0, 0, 0.3, 0.8, 1, 2 }, dropout = one_of { 0, 0.2 },
    select = one_of { 'random', 'position', 'probability' }, noise = one_of { 0, 0, 1 }, batch = draw(2 * size), time = 2 + draw(10) }
end

local function layout()
  local made = { micro_batches = draw(3), recompute = draw(2) == 1, overlap = draw(2) == 1 }
  for key, value in pairs(one_of(dist.layouts.meshes(size))) do made[key] = value end
  if draw(3) > 1 then made.zero = { dense = draw(4) - 1, expert = draw(4) - 1 } end
  if draw(3) == 1 then made.offload = one_of { 'optimizer', 'parameters' } end
  made.exchange = one_of { 'rows', 'once', 'two_level', 'padded', 'parts', 'shadow' }
  return made
end

-- Any shares that follow one another; often empty ones.
local function shares()
  local cuts = {}
  for i = 1, size - 1 do cuts[i] = draw(101) - 1 end
  table.sort(cuts)
  return function(count, at, ranks)
    if ranks ~= size then return dist.share(count, at, ranks) end
    local function cut(i) return i == 0 and 0 or i == ranks and count or math.floor(count * cuts[i] / 100 + 0.5) end
    return cut(at), cut(at + 1) - cut(at)
  end
end

local right, wrong, refused = 0, 0, 0
for _ = 1, tonumber(arg[2]) do
  local seed, opts = state, options()
  local batches = {}
  local report = dist.check_layouts {
    model = function(...) return LanguageModel(opts, ...) end,
    loss = function(model, ...) return model:loss(...) end,
    batch = function(step)
      batches[step] = batches[step] or lumoe.keep(LanguageModel.batch(opts))
      return batches[step]
    end,
    layouts = { layout(), layout() }, steps = draw(3), share = shares(), seed = draw(1000),
  }
  for _, row in ipairs(report.rows) do
    right, wrong = right + (row.ok and 1 or 0), wrong + (row.ok and 0 or 1)
  end
  refused = refused + #report.refused
  if rank == 0 and not (report.ok and #report.refused == 0) then
    local words = {}
    for name, value in pairs(opts) do words[#words + 1] = name .. '=' .. tostring(value) end
    table.sort(words)
    print(('seed %d: %s'):format(seed, table.concat(words, ' ')))
    print(report)
  end
end
if rank == 0 then print(('same: %d, not: %d, not examined: %d'):format(right, wrong, refused)) end
dist.barrier()
