--- What the experts of a layer cost, from the router to combine, as lua/lumoe/moe does it.
local block = require('lumoe.estimate.unit').block
local exchange = require 'lumoe.estimate.exchange'
local wires = require 'lumoe.estimate.wires'

local HEAD_WORDS = 5 -- before the counts in what ranks tell each other of a plan (runtime/moe/plan_impl.h)
local WAVE = 16 * 2 ^ 20 -- bytes
local PLACE = 24 -- bytes of a route in line at an expert over its capacity (runtime/moe/select.c)

local function router(u, tokens)
  local model = u.context.model
  local experts, top_k = model.experts, model.top_k
  u:parameter({ experts, model.dim }, { f32 = true })
  if u.context.bytes ~= 4 then u:makes(tokens * model.dim, 4) end
  for _ = 1, 3 do u:makes(tokens * experts, 4) end -- logits, scores, scores with the bias
  u:product(tokens, experts, model.dim)
  u:makes(tokens * top_k, 4)
  u:makes(tokens * top_k, 8)
  if model.balance > 0 then u:makes(tokens * experts, 4) end -- scores without padding
  u:makes(tokens * top_k, 4) -- weights
end

-- What a rank sends where experts are over their capacity: its lines there to who decides on them, and what it decided to
-- all. Of n lines, rank d of R decides those from n d / R on. Bytes and messages of those ranks that send most.
local function contest(tokens, r, ranks)
  local function first(d) return math.ceil(d * r.over / ranks) end
  local bytes, messages, deciders = 0, 0, math.min(ranks, r.over)
  for d = 0, ranks - 1 do
    local decides = first(d + 1) - first(d)
    local lines = tokens * (r.contested(0, r.over) - r.contested(first(d), first(d + 1)))
    bytes = math.max(bytes, PLACE * (lines + (ranks - 1) * decides))
    messages = math.max(messages, decides > 0 and deciders - 1 + ranks - 1 or deciders)
  end
  return bytes, messages
end

-- Each rank's counts to all ranks with tokens, and the mean scores that balancers want.
local function agreement(u, mine)
  local model, mesh, r = u.context.model, u.context.mesh, u.context.routing
  local function all(bytes) u:sends('plan', 'tokens', 'once', wires.all_gather(bytes, mesh.ranks)) end
  if mesh.ranks > 1 then all(8 * (HEAD_WORDS + model.experts)) end
  if mesh.ranks > 1 and r.over > 0 then
    all(8 * r.over)
    u:sends('plan', 'tokens', 'once', contest(mine, r, mesh.ranks))
    u:sends('plan', 'expert', 'once', wires.all_gather(8 * model.experts, mesh.ep * mesh.etp))
  end
  if model.balance > 0 and mesh.dp > 1 then
    u:sends('plan', 'data', 'once', wires.all_reduce(4 * model.experts, mesh.dp))
  end
end

-- The tensors of the experts. Returns the width of the first product, and of one expert { elements, bytes } by tensor.
local function expert_weights(u)
  local model, bytes = u.context.model, u.context.bytes
  local wide = (model.activation == 'swiglu' and 2 or 1) * model.expert_hidden
  u:parameter({ model.experts, wide, model.dim }, { expert = true, cut = 2 })
  u:parameter({ model.experts, model.dim, model.expert_hidden }, { expert = true, cut = 3 })
  local list = { { elements = wide * model.dim, bytes = bytes }, { elements = model.dim * model.expert_hidden, bytes = bytes } }
  if model.expert_bias then
    u:parameter({ model.experts, wide }, { expert = true, cut = 2 })
    u:parameter({ model.experts, model.dim }, { expert = true })
    list[3], list[4] = { elements = wide, bytes = bytes }, { elements = model.dim, bytes = bytes }
  end
  return wide, list
end

-- The arrays of runtime/moe/plan_impl.h: of what is decided, and of the order of rows (for each part again).
local function plan_bytes(model, mesh, tokens, x)
  local top_k, e = model.top_k, model.exchange
  local function order(share, once)
    local rows, arrivals, ranks = share * x.rows, share * x.arrivals, x.ranks
    local bytes = 2 * block(8 * ranks) + block(8 * (x.experts + 1)) + block(4 * rows) -- wire, offsets, route_of
    bytes = bytes + (mesh.etp > 1 and 3 or 1) * block(4 * share * x.copies) -- token_of; parcel_at, copy_of
    if e.way ~= 'direct' and ranks > 1 then bytes = bytes + (once and 2 or 1) * block(8 * ranks ^ 2) end
    if once then
      bytes = bytes + 2 * block(8 * ranks) + block(4 * share * tokens * x.fan) + block(4 * rows * mesh.etp)
        + block(4 * arrivals) + block(4 * share * x.received * x.width)
      for _, n in ipairs(x.tables or {}) do bytes = bytes + block(4 * share * n) + block(8 * ranks) end
    elseif ranks > 1 then bytes = bytes + 2 * block(4 * arrivals) end
    return bytes
  end
  local once = e.once and x.ranks > 1
  local bytes = 2 * block(8 * model.experts) + 2 * block(4 * model.experts) + block(168 * x.ranks) + block(4 * x.ranks)
    + block(8 * tokens) + 2 * block(4 * tokens * top_k) + block(tokens * top_k) + order(1, once and e.parts == 1)
  if e.shadow and x.ranks > 1 then bytes = bytes + block(model.experts) end
  if e.parts > 1 then bytes = bytes + e.parts * (order(1 / e.parts, once) + block(4 * tokens * top_k / e.parts)) end
  return bytes
end

-- What the ways hold while rows travel: what is received, and room. What stays until backward: rows that came home, for
-- the gradient of their weights; with `once` it is weights that went to the experts; copies of shadows.
local function travel(u, x, weights)
  local model, mesh = u.context.model, u.context.mesh
  local dim, bytes, once = model.dim, u.context.bytes, model.exchange.once
  local function now(count, room) return block(count * dim * bytes) + (room > 0 and block(room) or 0) end
  local stays = 0
  if once then u:saves(x.received * x.width, 4)
  elseif mesh.etp == 1 then
    u:saves(x.copies * dim, nil, true)
    stays = block(x.copies * dim * bytes)
  else u:saves(x.copies / mesh.etp * dim) end -- the sum of what the slices returned
  for _, w in ipairs(x.shadowed > 0 and weights or {}) do
    for _ = 1, model.exchange.parts do
      u:saves(x.experts * w.elements, w.bytes, true)
      u.shadows = u.shadows + block(x.experts * w.elements * w.bytes)
    end
    u:receives(block((x.owned * (x.ranks - 1) + x.shadowed - x.owned) * w.elements * 4) + block(x.own * w.elements * 4))
  end
  for _, leg in ipairs(x.legs) do
    if leg.name == 'combine_backward' then -- while it travels, what stayed is let go of
      u:receives(math.max(now(x.received, leg.early), now(x.received, leg.late) - stays))
    elseif leg.name == 'dispatch_backward' then u:receives(now(x.copies, math.max(leg.early, leg.late)) - stays) end
    u:sends(leg.wire, 'expert', leg.pass, leg.near.bytes + leg.far.bytes, leg.near.messages + leg.far.messages, leg.far)
  end
end

-- What backward's passes leave for one another, of some experts at a time (kernels/cpu/ffn_bwd.c); some in slabs of 32 rows.
local function room(x, parts, dim, wide, hidden, bytes)
  local function up(n, to) return math.ceil(n / to) * to end
  local arrivals = x.arrivals / parts
  local busy = x.experts * (1 - (1 - 1 / x.experts) ^ arrivals) -- experts that get any, where few rows go anywhere
  local rows = arrivals / busy
  local blocks = math.max(1, math.ceil(rows / 128))
  local slabs = blocks * up(up(rows / blocks, 16), 32)
  local each = (rows * (up(dim, 32) + dim) + slabs * (wide + 2 * dim)) * bytes + rows * math.ceil(hidden * bytes / 256) * 4
  return block(math.min(busy, math.max(1, math.floor(WAVE / each))) * each)
end

--- `tokens` of this rank, padding included; of a tensor group's, each rank sends off its share.
return function(u, tokens)
  local model, mesh = u.context.model, u.context.mesh
  local dim, mine = model.dim, math.ceil(tokens / mesh.tp)
  router(u, tokens)
  agreement(u, mine)
  local wide, weights = expert_weights(u)
  local x = exchange.of(u.context, mine, weights)
  if x.ranks > 1 then travel(u, x, weights) end
  for _, w in ipairs(weights) do u.weights = math.max(u.weights, block(4 * x.experts * w.elements / mesh.etp)) end
  u:plans(plan_bytes(model, mesh, mine, x))

  u.rows = block(x.arrivals * dim * u.context.bytes)
  local home = x.ranks == 1 and model.exchange.parts == 1 -- tokens are read where they lie (runtime/moe/ffn.c)
  local parts = model.exchange.parts
  for _ = 1, parts do u:saves(x.arrivals / parts * wide / mesh.etp) end
  if home then
    u:saves(x.arrivals, 4)
    u:saves(mine * model.top_k, 4)
  else
    u:makes(x.arrivals * dim)
    u:makes(x.arrivals * dim)
  end
  u.widest = math.max(u.widest, room(x, parts, dim, wide / mesh.etp, model.expert_hidden / mesh.etp, u.context.bytes))
  u:product(x.arrivals, wide / mesh.etp, dim)
  u:product(x.arrivals, dim, model.expert_hidden / mesh.etp)
  u:reads(x.experts * dim / mesh.etp * (wide + model.expert_hidden))
  for _ = 1, model.exchange.parts > 1 and 2 or 1 do u:makes(mine * dim) end -- of parts, and all of them together
  if mesh.tp > 1 then
    u:makes(tokens * dim)
    u:sends('tp all-gather', 'tensor', 'forward', wires.all_gather(mine * dim * u.context.bytes, mesh.tp))
    u:sends('tp all-gather', 'tensor', 'backward', wires.all_gather(mine * dim * u.context.bytes, mesh.tp))
    u:sends('tp all-gather', 'tensor', 'backward', wires.all_gather(mine * model.experts * 4, mesh.tp))
  end
end
