--- How long a step takes: each operation at the roofline, each wire at latency · messages + bytes / bandwidth,
-- one after the other unless overlap is asked for; then the longer of computing and moving counts.
--
-- What of the roofline is reached is the hardware's `efficiency`, of products alone, or where it was measured (estimate/
-- reach.lua) its `reach` by precision and part, of products and of the rest: of the speed that experts' products have at
-- the roofline they reach reach.bf16.experts.products.
local time = {}

-- Links within a host and between hosts are different wires, used at once.
local function seconds(t, hardware)
  local inside = (t.messages - t.far.messages) * hardware.link.latency + (t.bytes - t.far.bytes) / hardware.link.bandwidth
  return math.max(inside, t.far.messages * hardware.network.latency + t.far.bytes / hardware.network.bandwidth)
end

local ALL = { products = 1, rest = 1 }
local function reach(hardware, context, part) return hardware.reach and hardware.reach[context.precision][part] or ALL end

--- Of one unit, forward and backward in one micro-batch: seconds by part { products, rest }, of them those that memory takes,
-- and operations.
---@return table<string, { products: number, rest: number }> parts, number by_memory, number flops
function time.of_unit(u, context, hardware)
  local rate = hardware.flops[context.precision] * hardware.efficiency
  local passes = context.recompute and u.block and 4 or 3 -- backward is two
  local parts, by_memory, flops = {}, 0, 0
  for _, op in ipairs(u.ops) do
    local arithmetic, moving = passes * op.flops / rate, passes * op.bytes / hardware.bandwidth
    local kind = op.flops > 0 and 'products' or 'rest'
    local takes = math.max(arithmetic, moving) / reach(hardware, context, op.part)[kind]
    parts[op.part] = parts[op.part] or { products = 0, rest = 0 }
    parts[op.part][kind] = parts[op.part][kind] + takes
    flops = flops + passes * op.flops
    if moving > arithmetic then by_memory = by_memory + takes end
  end
  return parts, by_memory, flops
end

local function compute(units, context, hardware)
  local total, by_memory, flops, micro = 0, 0, 0, context.batch.micro_batches
  for _, u in ipairs(units) do
    local parts, memory, count = time.of_unit(u, context, hardware)
    for _, part in ipairs { 'dense', 'experts', 'loss' } do
      total = total + micro * (parts[part] and parts[part].products + parts[part].rest or 0)
    end
    by_memory, flops = by_memory + micro * memory, flops + micro * count
  end
  return total, by_memory, flops
end

--- AdamW reads gradient, m, v, master and writes m, v, master and parameter, of `owned` elements; the norm reads the gradient.
-- context.narrow: elements of gradients in bf16.
function time.of_update(owned, context, hardware)
  local each = 2 * 4 + 4 * context.mesh.moment + (context.bytes == 2 and context.mesh.masters and 2 * 4 or context.bytes) + context.bytes
  local bandwidth = context.mesh.offload and hardware.host.bandwidth / hardware.devices or hardware.bandwidth
  return (owned * each - 2 * 2 * (context.narrow or 0)) / bandwidth / reach(hardware, context, 'update').rest
end

---@return table  seconds by part; total, overlapped, binds, flops, tokens_per_second
function time.of(units, context, wires_list, tier, hardware)
  local parts = {}
  local working, by_memory, flops = compute(units, context, hardware)
  parts.compute, parts.update = working, time.of_update(context.owned, context, hardware)
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
