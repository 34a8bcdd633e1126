--- The setting of arXiv 2109.10465 on paper: 512 A100-40GB, where it reports 3.5 trillion parameters, 8 times what
-- systems with expert parallelism alone reach on the same machines.
--
-- The paper does not say how its largest model is shaped. Ours is its translation model made wider: 24 encoder and
-- 12 decoder layers, heads of 64, four times the width inside, 512 experts (one a GPU) in every second layer. Without
-- ZeRO the rest of the model, copied to every GPU with its optimizer, is what ends the growth.
local lumoe = require 'lumoe'
local report = require 'recipes.estimate.report'
local estimate = lumoe.estimate

local paper = {}

local RANKS, MACHINE = 512, 'a100-40'
local PUBLISHED = { parameters = 3.5e12, ratio = 8 }
local BATCH = { sequences = 4 * RANKS, source = 256, target = 256 }

local function model(n)
  return { dim = 64 * n, heads = n, hidden = 256 * n, vocab = 128000, encoder_layers = 24, decoder_layers = 12,
    experts = RANKS, top_k = 1, capacity = 1.25 }
end

local MODES = {
  { name = 'EP', mesh = {} },
  { name = 'EP + ZeRO-1', mesh = { zero = { dense = 1 } } },
  { name = 'EP + ZeRO-2', mesh = { zero = { dense = 2 } } },
  { name = 'EP + ZeRO-3', mesh = { zero = { dense = 3 } } },
  { name = 'EP + ZeRO-2 + offload', mesh = { zero = { dense = 2 }, offload = 'optimizer' } },
  { name = 'EP + ZeRO-3 + offload', mesh = { zero = { dense = 3 }, offload = 'optimizer' } },
  { name = 'EP + ZeRO-3 + offload, parameters too', mesh = { zero = { dense = 3 }, offload = 'parameters' } },
  { name = 'the same, without the host\'s limit', mesh = { zero = { dense = 3 }, offload = 'parameters' }, endless = true },
}

local function options(mode, what)
  local mesh = { ranks = RANKS, ep = RANKS, zero = mode.mesh.zero, offload = mode.mesh.offload }
  return { model = what, mesh = mesh, batch = BATCH, precision = 'bf16', recompute = true, hardware = MACHINE,
    tier_limit = mode.endless and math.huge or nil } -- of `largest`
end

-- What keeps the next larger model from fitting.
local function limit_of(mode, n)
  local opts = options(mode, model(n + 1))
  opts.tier_limit = nil
  local plan = estimate(opts)
  return plan.memory.peak.total > plan.hardware.memory and 'GPU memory' or 'host memory'
end

-- The narrowest of these models with at least so many parameters.
local function with_parameters(count)
  local n = 1
  while estimate { model = model(n) }.parameters.total < count do n = n + 1 end
  return n
end

local function largest(say)
  local rows, first = {}, nil
  say('%-38s %10s %7s %6s  %-12s %10s %10s', 'largest model', 'parameters', 'times', 'width', 'ended by', 'GPU', 'host/GPU')
  for _, mode in ipairs(MODES) do
    local n, plan = estimate.largest(options(mode, model))
    first = first or plan.parameters.total
    local row = { mode = mode.name, parameters = plan.parameters.total, ratio = plan.parameters.total / first, dim = 64 * n,
      limit = limit_of(mode, n), device = plan.memory.peak.total, tier = plan.memory.tier.total }
    rows[#rows + 1] = row
    say('%-38s %10s %6.1f× %6d  %-12s %10s %10s', mode.name, report.count(row.parameters), row.ratio, row.dim, row.limit,
      report.bytes(row.device), report.bytes(row.tier))
  end
  return rows
end

local function published(say)
  local n, rows = with_parameters(PUBLISHED.parameters), {}
  say('\nwith the published %s (width %d)%9s %10s   %s', report.count(PUBLISHED.parameters), 64 * n, 'GPU', 'host/GPU', 'step')
  for _, mode in ipairs(MODES) do
    if not mode.endless then
      local opts = options(mode, model(n))
      opts.tier_limit = nil
      local plan = estimate(opts)
      local row = { mode = mode.name, parameters = plan.parameters.total, fits = plan.fits, device = plan.memory.peak.total,
        tier = plan.memory.tier.total, seconds = plan.time.total, binds = plan.binds }
      rows[#rows + 1] = row
      say('%-38s %11s %10s   %s', mode.name, report.bytes(row.device), report.bytes(row.tier), plan.fits
        and ('%s, mostly %s'):format(report.seconds(row.seconds), row.binds) or 'does not fit: ' .. row.binds)
    end
  end
  return rows
end

--- Prints both tables; returns their figures.
function paper.run()
  local lead = lumoe.dist.rank() == 0
  local function say(...) if lead then io.stdout:write((...):format(select(2, ...)), '\n') end end
  local on = estimate.hardware[MACHINE]
  say('%d ranks of %s: %s each, and %s of host memory\n', RANKS, on.title, report.bytes(on.memory), report.bytes(on.tier.memory))
  local results = { published = PUBLISHED, largest = largest(say) }
  results.at_published = published(say)
  say('\npublished: %s parameters, %d× systems with expert parallelism alone', report.count(PUBLISHED.parameters),
    PUBLISHED.ratio)
  say('assumed: bf16 parameters, gradients and AdamW\'s state in f32 (18 bytes a parameter; with gradients of 16 bits, as in')
  say('fp16 systems, 16); %d sequences of %d + %d tokens a GPU, layers recomputed; all of both memories is for this', 4,
    BATCH.source, BATCH.target)
  return results
end

return paper
