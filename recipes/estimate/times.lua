--- The planner's times beside those of real steps, on this machine and the ranks at hand. Times are not held to a tolerance:
-- other jobs are in them.
--
-- What the planner knows of the machine are rates (estimate/here.lua) and what one small layer of each part reaches of them
-- (estimate/reach.lua), at other sizes than any of these.
local lumoe = require 'lumoe'
local real = require 'recipes.estimate.real'
local report = require 'recipes.estimate.report'
local dist = lumoe.dist

local times = {}

local function size(name, rows, length, model)
  model.capacity, model.dropout, model.balance = 0, 0.1, 0.01
  return { name = name, model = model, rows = rows, lengths = { source = length, target = length } }
end

local SIZES = {
  size('as the recipe', 20, 48,
    { dim = 192, heads = 4, hidden = 640, vocab = 8000, encoder_layers = 4, decoder_layers = 2, experts = 8, top_k = 2 }),
  size('narrow', 20, 48,
    { dim = 96, heads = 4, hidden = 320, vocab = 4000, encoder_layers = 4, decoder_layers = 2, experts = 16, top_k = 2 }),
  size('wide', 8, 32,
    { dim = 512, heads = 8, hidden = 1536, vocab = 8000, encoder_layers = 2, decoder_layers = 1, experts = 4, top_k = 1 }),
  size('dense', 20, 48,
    { dim = 256, heads = 4, hidden = 1024, vocab = 8000, encoder_layers = 3, decoder_layers = 3, experts = 1, top_k = 1 }),
}

-- Layouts of so many ranks: of the first size all, of the others the first.
local function layouts(ranks)
  if ranks == 1 then return { { name = 'one rank' }, { name = 'offload', offload = 'optimizer' } } end
  local list = { { name = ('ep %d'):format(ranks), ep = ranks }, { name = 'dp' }, { name = 'ZeRO-3', zero = { dense = 3, expert = 3 } } }
  if ranks % 2 == 0 then list[#list + 1] = { name = 'tp 2', tp = 2 } end
  return list
end

local function planned(layout, of, precision, hardware)
  local ranks = dist.world_size()
  return lumoe.estimate { model = of.model, precision = precision, hardware = hardware,
    mesh = { ranks = ranks, tp = layout.tp, ep = of.model.experts > 1 and layout.ep or 1, zero = layout.zero, offload = layout.offload },
    batch = { sequences = of.rows * ranks / (layout.tp or 1), source = of.lengths.source, target = of.lengths.target } }
end

local function measured(layout, of, precision)
  local how = { precision = precision }
  for key, value in pairs(layout) do how[key] = value end
  if of.model.experts == 1 then how.ep = 1 end
  return real.seconds(how, of)
end

local function shares(plan)
  local words = {}
  for _, part in ipairs { 'compute', 'wires', 'tier', 'update' } do
    local share = plan.time.parts[part] / plan.time.total
    if share >= 0.005 then words[#words + 1] = ('%s %.0f %%'):format(part, 100 * share) end
  end
  return table.concat(words, ', ')
end

--- only: sizes whose name has this text. A list of { size, precision, layout, planned, counted } in seconds. Collective.
function times.run(only)
  local hardware, results, lead = lumoe.estimate.here(), {}, dist.rank() == 0
  local function say(...)
    if lead then print((...):format(select(2, ...))) end
  end
  say('%-14s %-5s %-9s %10s %10s %8s  %s', 'size', 'bits', 'layout', 'planned', 'counted', 'off', 'planned of it')
  local sum, worst = 0, 0
  for i, of in ipairs(SIZES) do
    for _, precision in ipairs { 'f32', 'bf16' } do
      for number, layout in ipairs(layouts(dist.world_size())) do
        if (i == 1 or number == 1) and of.name:find(only or '', 1, true) then
          local plan, counted = planned(layout, of, precision, hardware), measured(layout, of, precision)
          local off = plan.time.total / counted - 1
          say('%-14s %-5s %-9s %10s %10s %+6.0f %%  %s', of.name, precision, layout.name, report.seconds(plan.time.total),
            report.seconds(counted), 100 * off, shares(plan))
          results[#results + 1] = { size = of.name, precision = precision, layout = layout.name, planned = plan.time.total,
            counted = counted }
          sum, worst = sum + math.abs(off), math.max(worst, math.abs(off))
        end
      end
    end
  end
  say('%d steps: off by %.0f %% on average, %.0f %% at most', #results, 100 * sum / #results, 100 * worst)
  return results
end

return times
