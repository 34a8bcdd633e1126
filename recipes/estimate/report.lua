--- A plan in words and columns.
local estimate = require('lumoe').estimate

local report = {}

local PURPOSES = { 'parameters', 'gradients', 'optimizer', 'activations', 'exchange', 'total' }

--- 3.5e12 as '3.50 T'.
function report.count(n)
  for _, unit in ipairs { { 1e12, ' T' }, { 1e9, ' G' }, { 1e6, ' M' }, { 1e3, ' k' } } do
    if n >= unit[1] then return ('%.3g%s'):format(n / unit[1], unit[2]) end
  end
  return ('%d'):format(n)
end

function report.bytes(n)
  for _, unit in ipairs { { 40, 'TiB' }, { 30, 'GiB' }, { 20, 'MiB' }, { 10, 'KiB' } } do
    if n >= 2 ^ unit[1] then return ('%.1f %s'):format(n / 2 ^ unit[1], unit[2]) end
  end
  return ('%d B'):format(n)
end

function report.seconds(s)
  if s == 0 then return '0' end
  if s < 1e-3 then return ('%.0f µs'):format(s * 1e6) end
  return s < 1 and ('%.1f ms'):format(s * 1e3) or ('%.2f s'):format(s)
end

-- µ is two bytes and one column.
local function right(text, width) return (' '):rep(width - #text + (text:find 'µ' and 1 or 0)) .. text end

local function memory(plan, say)
  say('\nmemory of a rank   %12s %12s %12s', 'stays', 'at its peak', 'second tier')
  for _, what in ipairs(PURPOSES) do
    local stays = plan.memory.live[what] or what == 'total' and plan.memory.live.parameters + plan.memory.live.optimizer
    local away = plan.memory.tier[what]
    say('  %-16s %12s %12s %12s', what, stays and report.bytes(stays) or '', report.bytes(plan.memory.peak[what]),
      away and away > 0 and report.bytes(away) or '')
  end
  say('  %-16s %12s %12s', 'under way, at most', '', '+ ' .. report.bytes(plan.memory.peak.in_flight))
  local on = plan.hardware
  if on then
    say('  %-16s %12s %12s %12s', 'there is', '', report.bytes(on.memory),
      plan.memory.tier.total > 0 and on.tier.memory < math.huge and report.bytes(on.tier.memory) or '')
  end
end

local function wires(plan, say)
  if #plan.wires == 0 then return end
  say('\nwires of a rank, one step%16s %10s%s', 'bytes', 'messages', plan.time and '  between hosts      time' or '')
  for _, t in ipairs(plan.wires) do
    local when = plan.time and ('%14s %s'):format(report.bytes(t.far.bytes), right(report.seconds(t.seconds), 10)) or ''
    say('  %-15s %-9s %13s %10d %s', t.wire, t.group, report.bytes(t.bytes), t.messages, when)
  end
  if plan.tier.read > 0 then
    say('  %-15s %-9s %13s read, %s written', 'second tier', '', report.bytes(plan.tier.read), report.bytes(plan.tier.written))
  end
end

local function times(plan, say)
  local t = plan.time
  if not t then return end
  say('\ntime of a step     %s, %s', plan.hardware.title, plan.context.overlap and 'moving under computing' or 'nothing overlapped')
  for _, name in ipairs { 'compute', 'wires', 'tier', 'update' } do
    say('  %-16s %s%s', name, right(report.seconds(t.parts[name]), 12),
      name == 'compute' and (', %.0f %% of it bound by memory'):format(100 * t.memory_bound) or '')
  end
  say('  %-16s %s, %s tokens/s over all ranks, %s/s on each', 'total', right(report.seconds(t.total), 12),
    report.count(t.tokens_per_second), report.count(t.achieved_flops) .. 'FLOP')
end

--- Prints it; what was assumed comes last.
function report.print(plan)
  local function say(...) io.stdout:write((...):format(select(2, ...)), '\n') end
  local n, on = plan.parameters, plan.hardware
  say('%s parameters, %s of them active for a token; this rank computes with %s', report.count(n.total),
    report.count(n.active), report.count(n.here))
  say('%s, %s', estimate.describe_mesh(plan.context.mesh), plan.context.precision)
  memory(plan, say)
  wires(plan, say)
  times(plan, say)
  if on then say('\n%s: %s', plan.fits and 'fits; what binds' or 'does not fit; what binds', plan.binds) end
  say('\nassumed: %s; the busiest rank; %s in f32%s, AdamW%s%s%s',
    plan.context.model.popularity and 'popularity by Zipf\'s law' or 'even routing',
    plan.context.mesh.masters and 'gradients and masters' or 'gradients',
    plan.context.mesh.bf16_gradients and " (experts' in bf16)" or '',
    plan.context.mesh.moment == 2 and ' with bf16 moments' or '',
    on and on.efficiency < 1 and ('; products at %.0f %% of peak'):format(100 * on.efficiency) or '',
    plan.context.mesh.offload and '; the second tier is the host\'s memory' or '')
end

--- The same as numbers, for a file.
function report.figures(plan)
  local wires_list = {}
  for i, t in ipairs(plan.wires) do
    wires_list[i] = { wire = t.wire, group = t.group, bytes = t.bytes, messages = t.messages, seconds = t.seconds,
      between_hosts = t.far.bytes, messages_between_hosts = t.far.messages }
  end
  return { layout = estimate.describe_mesh(plan.context.mesh), precision = plan.context.precision,
    parameters = plan.parameters, memory = plan.memory, wires = wires_list, sent = plan.sent, tier = plan.tier,
    time = plan.time, fits = plan.fits, binds = plan.binds, hardware = plan.hardware and plan.hardware.title }
end

return report
