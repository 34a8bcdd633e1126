--- The planner against reality: real steps on the ranks at hand, under every layout that they allow, and each figure held
-- against the runtime's counter of it.
--
-- Exact: parameters; bytes and messages that a rank sends, also those of the exchange alone and between hosts. Within the
-- tolerance, 5 %: the peak of all memory and of each purpose that has more than a hundredth of it, for a rank that is short
-- of memory; at leisure the peak may be larger by what the planner says can be under way. Bytes to and from the tier are
-- exact too. Times are beside real ones in times.lua.
local lumoe = require 'lumoe'
local layouts = require 'recipes.estimate.layouts'
local real = require 'recipes.estimate.real'
local report = require 'recipes.estimate.report'
local dist = lumoe.dist

local verify = {}

local SMALL = 0.01 -- purposes with less of the memory are shown, but may be off
local ROUNDING = 1e-9 -- of sums of fractions
-- Where ranks do not divide a gradient's elements, shares of its sum are whole elements, some ranks' one larger.
local UNEVEN = 1e-4
local NUMBERS = { parameters = true } -- the rest are bytes, or messages

local function planned(layout)
  local ranks = dist.world_size()
  local model = { exchange = layout.exchange, popularity = layout.popularity, capacity = layout.capacity }
  for key, value in pairs(real.MODEL) do model[key] = model[key] or value end
  return lumoe.estimate { model = model, precision = layout.precision, masters = layout.masters,
    moments = layout.moments, gradients = layout.gradients, recompute = layout.recompute,
    mesh = { ranks = ranks, tp = layout.tp, ep = layout.ep, etp = layout.etp, zero = layout.zero, offload = layout.offload,
      on_host = layout.on_host },
    batch = { sequences = (layout.micro_batches or 1) * real.ROWS * ranks / (layout.tp or 1), source = real.LENGTHS.source,
      target = real.LENGTHS.target, micro_batches = layout.micro_batches } }
end

-- Of the plan, in one micro-batch, what real.measure counts of the exchange.
local function exchange_of(plan)
  local sent, micro = { bytes = 0, messages = 0, far_bytes = 0, far_messages = 0 }, plan.context.batch.micro_batches
  for _, t in ipairs(plan.wires) do
    if t.wire == 'all-to-all' or t.wire == 'shadows' then
      sent.bytes, sent.messages = sent.bytes + t.bytes / micro, sent.messages + t.messages / micro
      sent.far_bytes, sent.far_messages = sent.far_bytes + t.far.bytes / micro, sent.far_messages + t.far.messages / micro
    end
  end
  return sent
end

-- Lines { what, planned, counted, off, held, wrong }; off: a share of what was counted.
-- by_chance: the rows that are kept are not quite those that are expected.
local function compare(plan, got, tolerance, by_chance)
  local lines, peak = {}, plan.memory.peak
  local function line(what, want, have, allowed)
    local off = have == want and 0 or math.abs(want - have) / math.max(have, 1)
    lines[#lines + 1] = { what = what, planned = want, counted = have, off = off, held = allowed ~= nil,
      wrong = allowed ~= nil and off > allowed }
  end
  line('parameters', plan.parameters.here, got.parameters, 0)
  for _, what in ipairs(real.PURPOSES) do
    local small = math.max(peak[what], got.memory[what]) < SMALL * got.memory.total
    line('memory: ' .. what, peak[what], got.memory[what], not small and tolerance or nil)
  end
  -- Anything between the two is right.
  local nearest = math.min(math.max(got.at_leisure, peak.total), peak.total + peak.in_flight)
  line('memory: at leisure', nearest, got.at_leisure, tolerance)
  local exact, exchange = 64 % dist.world_size() == 0 and ROUNDING or UNEVEN, exchange_of(plan)
  line('bytes sent', plan.sent.bytes, got.bytes, by_chance and tolerance or exact)
  if by_chance then line('bytes of all else', plan.sent.bytes - exchange.bytes, got.beside, exact) end
  line('messages sent', plan.sent.messages, got.messages, ROUNDING)
  if plan.tier.written > 0 then
    line('tier: read', plan.tier.read, got.tier_read, ROUNDING)
    line('tier: written', plan.tier.written, got.tier_written, ROUNDING)
  end
  for _, what in ipairs { 'bytes', 'messages', 'far_bytes', 'far_messages' } do
    if exchange[what] > 0 or got.exchange[what] > 0 then
      line('exchange: ' .. (what:gsub('far_(.*)', '%1 far')), exchange[what], got.exchange[what], by_chance and tolerance or ROUNDING)
    end
  end
  return lines
end

local function print_lines(lines)
  for _, line in ipairs(lines) do
    local text = (NUMBERS[line.what] or line.what:find 'messages') and function(n) return ('%.0f'):format(n) end or report.bytes
    io.stdout:write(('  %-22s planned %12s   counted %12s   off %6.2f %%%s\n'):format(line.what, text(line.planned),
      text(line.counted), 100 * line.off, line.wrong and '   WRONG' or line.held and '' or '   (small)'))
  end
end

--- Runs all; returns figures and how many are off. Collective.
function verify.run(opts)
  local results, off, worst, lead = {}, 0, 0, dist.rank() == 0
  for _, layout in ipairs(layouts.list(dist.world_size(), opts.only)) do
    local plan, got = planned(layout), real.measure(layout)
    local lines = compare(plan, got, opts.tolerance, layout.capacity ~= nil)
    for _, line in ipairs(lines) do
      off, worst = off + (line.wrong and 1 or 0), math.max(worst, line.held and line.off or 0)
    end
    if lead then
      io.stdout:write(('%s: %s\n'):format(layout.name, lumoe.estimate.describe_mesh(plan.context.mesh)))
      print_lines(lines)
    end
    results[#results + 1] = { layout = layout.name, lines = lines }
  end
  if lead then
    io.stdout:write(off == 0 and ('%d layouts: memory within %.1f %%, bytes and messages exact\n'):format(#results, 100 * worst)
      or ('%d figures are off\n'):format(off))
  end
  return results, off
end

return verify
