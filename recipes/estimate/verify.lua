--- The planner against reality: real steps on the ranks at hand, under every layout that they allow, and each figure held
-- against the runtime's counter of it.
--
-- Exact: parameters; bytes and messages that a rank sends, also those of the exchange alone and between hosts. Within the
-- tolerance, 5 %: the peak of all memory and of each purpose that has more than a hundredth of it, for a rank that is short
-- of memory; at leisure the peak may be larger by what the planner says can be under way. Times are printed, not held: other
-- jobs of the machine are in them.
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

local function planned(layout, hardware)
  local ranks = dist.world_size()
  local model = { exchange = layout.exchange, popularity = layout.popularity }
  for key, value in pairs(real.MODEL) do model[key] = value end
  return lumoe.estimate { model = model, precision = layout.precision, recompute = layout.recompute, hardware = hardware,
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
local function compare(plan, got, tolerance)
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
  line('bytes sent', plan.sent.bytes, got.bytes, 64 % dist.world_size() == 0 and ROUNDING or UNEVEN)
  line('messages sent', plan.sent.messages, got.messages, ROUNDING)
  local exchange = exchange_of(plan)
  for _, what in ipairs { 'bytes', 'messages', 'far_bytes', 'far_messages' } do
    if exchange[what] > 0 or got.exchange[what] > 0 then
      line('exchange: ' .. (what:gsub('far_(.*)', '%1 far')), exchange[what], got.exchange[what], ROUNDING)
    end
  end
  return lines
end

-- Shares of a predicted step: { compute, exchange, wires (others), tier, update }.
local function shares(plan)
  local t, exchange = plan.time, 0
  for _, w in ipairs(plan.wires) do
    if w.wire == 'all-to-all' or w.wire == 'shadows' or w.wire == 'plan' then exchange = exchange + w.seconds end
  end
  local sum = t.parts.compute + t.parts.wires + t.parts.tier + t.parts.update
  return { compute = t.parts.compute / sum, exchange = exchange / sum, wires = (t.parts.wires - exchange) / sum,
    tier = t.parts.tier / sum, update = t.parts.update / sum }
end

local function print_time(time)
  local words = {}
  for _, part in ipairs { 'compute', 'exchange', 'wires', 'tier', 'update' } do
    if time.shares[part] > 0 then words[#words + 1] = ('%s %.0f %%'):format(part, 100 * time.shares[part]) end
  end
  io.stdout:write(('  %-22s planned %12s   counted %12s   x %.2f; planned: %s\n'):format('time of a step',
    report.seconds(time.planned), report.seconds(time.counted), time.counted / time.planned, table.concat(words, ', ')))
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
  local hardware = lumoe.estimate.here()
  for _, layout in ipairs(layouts.list(dist.world_size(), opts.only)) do
    local plan, got = planned(layout, hardware), real.measure(layout)
    local lines = compare(plan, got, opts.tolerance)
    local time = { planned = plan.time.total, counted = got.seconds, shares = shares(plan) }
    for _, line in ipairs(lines) do
      off, worst = off + (line.wrong and 1 or 0), math.max(worst, line.held and line.off or 0)
    end
    if lead then
      io.stdout:write(('%s: %s\n'):format(layout.name, lumoe.estimate.describe_mesh(plan.context.mesh)))
      print_lines(lines)
      print_time(time)
    end
    results[#results + 1] = { layout = layout.name, lines = lines, time = time }
  end
  if lead then
    io.stdout:write(off == 0 and ('%d layouts: memory within %.1f %%, bytes and messages exact\n'):format(#results, 100 * worst)
      or ('%d figures are off\n'):format(off))
  end
  return results, off
end

return verify
