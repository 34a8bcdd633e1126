--- The layouts, exchanges and precisions that `--verify` tries, as far as so many ranks allow.
local layouts = {}

-- Two hosts, as if: the first half of the ranks on one of them.
local function halves(ranks)
  local hosts = {}
  for r = 1, ranks do hosts[r] = r <= ranks / 2 and 0 or 1 end
  return hosts
end

local function exchanges(add, ranks)
  local function exchange(name, how, more)
    local layout = { ep = ranks, exchange = how }
    for key, value in pairs(more or {}) do layout[key] = value end
    add(name, layout)
  end
  local two_levels = { hosts = halves(ranks), way = 'two_level' }
  local hot = { popularity = { 3, 1, 1, 1, 1, 1, 1, 1 } } -- the first expert has twice the mean load
  exchange('once', { once = true })
  exchange('padded', { way = 'padded' })
  exchange('in 2 parts', { parts = 2 })
  exchange('once, in 2 parts, bf16', { once = true, parts = 2 }, { precision = 'bf16' })
  exchange('shadows', { shadow = 1.5 }, hot)
  exchange('rows, a hot expert', nil, hot)
  exchange('rows, experts over capacity', nil, { capacity = 0.75 })
  exchange('rows, a hot expert over its capacity', nil, { capacity = 1.25, popularity = hot.popularity })
  if ranks % 2 == 0 then
    local both = { hosts = two_levels.hosts, way = 'two_level', once = true }
    exchange('two levels', two_levels, { on_host = ranks / 2 })
    exchange('once, two levels', both, { on_host = ranks / 2 })
    exchange('once, two levels, recomputed', both, { on_host = ranks / 2, recompute = true })
  end
end

local function divided(add, ranks)
  for stage = 1, 3 do add(('ZeRO-%d, bf16'):format(stage), { zero = { dense = stage, expert = stage }, precision = 'bf16' }) end
  add('ZeRO-2, 2 micro-batches', { zero = { dense = 2, expert = 2 }, micro_batches = 2 })
  add('ep, ZeRO-3 of what is no expert', { ep = ranks, zero = { dense = 3 } })
  if ranks % 2 ~= 0 then return end
  add('tp 2', { tp = 2 })
  add('tp 2, ep 2', { tp = 2, ep = 2 })
  add('tp 2, etp 2, bf16', { tp = 2, etp = 2, precision = 'bf16' })
  if ranks < 4 then return end
  add('ep 2, ZeRO-3 of experts alone', { ep = ranks / 2, zero = { expert = 3 } })
  add('tp 2, ep 2, ZeRO-1 and ZeRO-3', { tp = 2, ep = 2, zero = { dense = 1, expert = 3 }, precision = 'bf16' })
  add('ep 2, etp 2, once', { ep = 2, etp = 2, exchange = { once = true } })
end

--- { name, precision, masters, moments, gradients, ep, etp, tp, zero, offload, recompute, micro_batches, exchange, popularity,
-- capacity, on_host }, those whose
-- names have the text `only`.
function layouts.list(ranks, only)
  local list = {}
  local function add(name, layout)
    layout.name, layout.precision = name, layout.precision or 'f32'
    if not only or name:find(only, 1, true) then list[#list + 1] = layout end
  end
  for ep = 1, ranks do
    if ranks % ep == 0 then
      local name = ep == 1 and 'dp' or ('ep %d'):format(ep)
      add(name, { ep = ep })
      add(name .. ', bf16', { ep = ep, precision = 'bf16' })
      add(name .. ', recomputed', { ep = ep, recompute = true })
    end
  end
  add('2 micro-batches', { ep = ranks, micro_batches = 2 })
  add('offload optimizer, bf16', { offload = 'optimizer', precision = 'bf16' })
  add('offload parameters, bf16', { offload = 'parameters', precision = 'bf16' })
  add('no masters, bf16', { precision = 'bf16', masters = false })
  add('bf16 moments', { moments = 'bf16' })
  add('no masters, bf16 moments, bf16', { precision = 'bf16', masters = false, moments = 'bf16' })
  add('offload parameters, bf16 moments, bf16', { offload = 'parameters', precision = 'bf16', moments = 'bf16' })
  add('offload parameters, no masters, bf16', { offload = 'parameters', precision = 'bf16', masters = false })
  add('offload parameters, 2 micro-batches', { offload = 'parameters', micro_batches = 2 })
  if ranks > 1 then
    add('all bf16', { precision = 'bf16', masters = false, moments = 'bf16', gradients = 'bf16', ep = ranks })
    divided(add, ranks)
    exchanges(add, ranks)
  end
  return list
end

return layouts
