--- How long a step takes: each operation at the roofline, each wire at latency · messages + bytes / bandwidth,
-- one after the other unless overlap is asked for; then the longer of computing and moving counts.
local time = {}

-- Links within a host and between hosts are different wires, used at once.
local function seconds(t, hardware)
  local inside = (t.messages - t.far.messages) * hardware.link.latency + (t.bytes - t.far.bytes) / hardware.link.bandwidth
  return math.max(inside, t.far.messages * hardware.network.latency + t.far.bytes / hardware.network.bandwidth)
end

local function compute(units, context, hardware)
  local rate = hardware.flops[context.precision] * hardware.efficiency
  local total, by_memory, flops = 0, 0, 0
  for _, u in ipairs(units) do
    local passes = context.batch.micro_batches * (context.recompute and u.block and 4 or 3) -- backward is two
    for _, op in ipairs(u.ops) do
      local arithmetic, moving = op.flops / rate, op.bytes / hardware.bandwidth
      total = total + passes * math.max(arithmetic, moving)
      flops = flops + passes * op.flops
      if moving > arithmetic then by_memory = by_memory + passes * moving end
    end
  end
  return total, by_memory, flops
end

--- AdamW reads gradient, m, v, master and writes m, v, master and parameter, of what this rank owns.
local function update(context, hardware)
  local each = 4 + 2 * 8 + (context.bytes == 2 and 2 * 4 or 4) + context.bytes
  local bandwidth = context.mesh.offload and hardware.host.bandwidth / hardware.devices or hardware.bandwidth
  return context.owned * each / bandwidth
end

---@return table  seconds by part; total, overlapped, binds, flops, tokens_per_second
function time.of(units, context, wires_list, tier, hardware)
  local parts = {}
  local working, by_memory, flops = compute(units, context, hardware)
  parts.compute, parts.update = working, update(context, hardware)
  parts.tier = math.max(tier.read, tier.written) / hardware.tier.bandwidth
  parts.wires = 0
  for _, t in ipairs(wires_list) do
    t.seconds = seconds(t, hardware)
    parts.wires = parts.wires + t.seconds
  end
  local most, binds = -1, nil
  for _, name in ipairs { 'compute', 'wires', 'tier', 'update' } do
    if parts[name] > most then most, binds = parts[name], name end
  end
  local overlapped = math.max(parts.compute, parts.wires, parts.tier) + parts.update
  local total = context.overlap and overlapped or parts.compute + parts.wires + parts.tier + parts.update
  local batch = context.batch
  local tokens = batch.sequences * (batch.source + (context.model.decoder_layers > 0 and batch.target or 0))
  return { parts = parts, total = total, overlapped = overlapped, binds = binds, flops = flops,
    memory_bound = working > 0 and by_memory / working or 0, tokens_per_second = tokens / total,
    achieved_flops = flops / total }
end

return time
