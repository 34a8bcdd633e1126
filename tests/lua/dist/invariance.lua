-- Run by invariance_spec.lua on several ranks: one part of what "the same under every layout" means, by its
-- name. Rank 0 prints how many layouts were the same, and those that were not.
local lumoe = require 'lumoe'
local LanguageModel = require 'recipes.check_layouts.model'
local dist = lumoe.dist
local rank, size = dist.rank(), dist.world_size()

-- Heads that divide over any tensor group of the job.
local HEADS = size % 3 == 0 and 6 or 8

local SMALL = { dim = 2 * HEADS, heads = HEADS, hidden = 24, layers = 3, vocab = 24, experts = 6, top_k = 2, capacity = 0.8,
  select = 'random', noise = 1, dropout = 0.1, batch = 8, time = 9 }

local function with(changes)
  local opts = {}
  for _, t in ipairs { SMALL, changes } do
    for key, value in pairs(t) do opts[key] = value end
  end
  return opts
end

local idle = LanguageModel.idle_first

local PARTS = {
  everything = { extras = 'all', steps = 3 },
  meshes = { steps = 2 },
  dense = { opts = { experts = 1, vocab = 23 }, dense = true, steps = 2, share = idle },
  dropless_top_1 = { opts = { capacity = 0, top_k = 1, noise = 0 } },
  top_8 = { opts = { experts = 13, top_k = 8 } },
  by_probability = { opts = { select = 'probability', experts = 7 } },
  idle_rank = { share = idle },
  one_expert = { opts = { top_k = 1, noise = 0, capacity = 2 }, one_expert = true },
  one_expert_dropless = { opts = { top_k = 1, noise = 0, capacity = 0 }, one_expert = true, share = idle },
  accumulation = { extras = { { micro_batches = 2 }, { micro_batches = 3, recompute = true } }, bare = false },
  twenty_steps = { steps = 20 },
}

local part = assert(PARTS[arg[1]])
local opts = with(part.opts or {})
local batches = {}

-- All layouts, or one in so many of them.
local layouts, every = {}, tonumber(arg[2] or 1)
for i, layout in ipairs(dist.layouts.list(size, part.extras ~= 'all' and (part.extras or {}) or nil)) do
  if (i - 1) % every == 0 and (not part.dense or layout.ep * layout.etp == 1) then layouts[#layouts + 1] = layout end
end

local report = dist.check_layouts {
  model = function(mesh, layout)
    local model = LanguageModel(opts, mesh, layout)
    if part.one_expert then model:prefer_first_expert() end
    return model
  end,
  loss = function(model, ...) return model:loss(...) end,
  batch = function(step)
    batches[step] = batches[step] or lumoe.keep(LanguageModel.batch(opts))
    return batches[step]
  end,
  layouts = layouts, steps = part.steps, share = part.share,
}


if rank == 0 then
  local right = 0
  for _, row in ipairs(report.rows) do right = right + (row.ok and 1 or 0) end
  print(('same: %d, not: %d, not examined: %d'):format(right, #report.rows - right, #report.refused))
  for _, row in ipairs(report.rows) do
    if not row.ok then print(report.line(row)) end
  end
  local seen = {}
  for _, row in ipairs(report.refused) do
    local why = row.why:gsub('^.-%d+: ', '')
    if not seen[why] then print(report.line(row)) end
    seen[why] = true
  end
end
dist.barrier()
