--- Real steps of the recipe's model, small, and what the runtime counts of one: memory by purpose at its peak
-- (lumoe.memory), bytes and messages sent (dist.counters, the plans' own), parameters, time.
local lumoe = require 'lumoe'
local Translator = require 'recipes.translate.model'
local all_sets = require 'recipes.estimate.sets'
local clock = require('lumoe.log.terminal').clock
local random = require 'lumoe.random'
local dist, optim = lumoe.dist, lumoe.optim

local real = {}

real.MODEL = { dim = 64, heads = 4, hidden = 256, vocab = 1000, encoder_layers = 4, decoder_layers = 2, experts = 8,
  top_k = 2, capacity = 0, dropout = 0.1, balance = 0.01 }
real.ROWS = 8 -- sequences of a rank and micro-batch
-- Positions of each. A rank's tokens, and half of them, then are multiples of 28 and of 42: how many sets of two experts
-- there are, and how many when one is three times as popular.
real.LENGTHS = { source = 42, target = 21 }
real.PURPOSES = { 'parameters', 'gradients', 'optimizer', 'activations', 'exchange', 'total' }

local SMALL = { model = real.MODEL, rows = real.ROWS, lengths = real.LENGTHS }

-- ---- routing as the planner takes it to be -------------------------------------------------

-- Token i chooses the i-th set, in turn.
local function route_by_turns(layer, popularity)
  local learned, sets = layer.router.route, nil
  layer.router.route = function(self, x, tags)
    local choice = learned(self, x, tags)
    local tokens, top_k, ids = x:size(0), choice.expert_ids:size(1), {}
    sets = sets or all_sets(self.experts, top_k, popularity)
    for t = 0, tokens - 1 do
      for s, e in ipairs(sets[t % #sets + 1]) do ids[t * top_k + s] = e end
    end
    choice.expert_ids:copy_(lumoe.tensor(ids, { dtype = 'i64' }):reshape(tokens, top_k))
    return choice
  end
end

-- ---- a step --------------------------------------------------------------------------------

-- given: a model as real.MODEL. by_turns: experts are chosen by turns, else learned.
local function build(layout, given, by_turns)
  local opts = { noise = 0, label_smoothing = 0.1, select = 'random' }
  for key, value in pairs(given) do opts[key] = value end
  for _, key in ipairs { 'tp', 'ep', 'etp', 'offload', 'recompute', 'exchange' } do opts[key] = layout[key] end
  opts.capacity = layout.capacity or given.capacity
  opts.zero_dense, opts.zero_expert = layout.zero and layout.zero.dense, layout.zero and layout.zero.expert
  local model = Translator(opts)
  model:initialize()
  if layout.precision == 'bf16' then model:to 'bf16' end
  for _, m in ipairs(by_turns and model:moe_layers() or {}) do route_by_turns(m.layer, layout.popularity) end
  dist.shard(model)
  return model:train(), optim.AdamW(model:named_parameters(), { masters = layout.masters, moments = layout.moments,
    gradients = layout.gradients })
end

-- `rows` sequences of this rank, the first of them number `first`, of random ids below `vocab`; all tokens valid.
local function batch(rows, first, lengths, vocab)
  local function ids(len) return (random.rand(rows, len) * (vocab - 1)):int() + 1 end
  local function tags(len)
    return { valid = lumoe.ones({ rows, len }, { dtype = 'u8' }),
      tokens = (lumoe.arange(rows) + first):reshape(rows, 1) * 2 ^ 20 + lumoe.arange(len) }
  end
  local source, target = lengths.source, lengths.target
  return { pad = 0, src = ids(source), tgt_in = ids(target), tgt_out = ids(target), src_tags = tags(source), tgt_tags = tags(target) }
end

-- size: { model, rows (of this rank and micro-batch), lengths }.
local function step(model, optimizer, layout, size, number)
  local dp = dist.world_size() / (layout.tp or 1)
  local part = math.floor(dist.rank() / (layout.tp or 1))
  local micro_batches = layout.micro_batches or 1
  random.step(number)
  for micro = 1, micro_batches do
    lumoe.scope(function()
      local nll, encoder, decoder = model:loss(batch(size.rows, part * size.rows, size.lengths, size.model.vocab))
      local loss = nll / (dp * size.rows * size.lengths.target)
      if encoder then loss = loss + encoder:float() end
      if decoder then loss = loss + decoder:float() end
      loss:backward { last = micro == micro_batches }
    end)
  end
  dist.reduce_gradients(model)
  optimizer:step { grad_scale = optim.clip_scale(dist.grad_norm(model), 1) }
  optimizer:zero_grad()
  dist.reduce_number(0) -- as the recipe does with its loss
end

-- The next layout is measured without this one's tensors, whenever Lua would have found out.
local function forget(model, optimizer)
  dist.unshard(model)
  for _, p in ipairs(model:named_parameters()) do
    optimizer.parts[p.name]:dispose()
    if lumoe.is_tensor(p.tensor) then p.tensor:dispose() end
    p.spec.lodging = nil
  end
  for _, t in pairs(optimizer:tensors()) do t:dispose() end
  for _, m in ipairs(model:moe_layers()) do m.layer.last_plan = nil end
end

-- Compiled traces hold on to what they were made of.
local function collect()
  jit.flush()
  collectgarbage()
  collectgarbage()
end


-- ---- what is counted -----------------------------------------------------------------------

local function most(n) return dist.reduce_number(n, 'max') end -- of all ranks

local LEGS = { 'dispatch', 'combine', 'dispatch_backward', 'combine_backward', 'shadow', 'shadow_backward' }

-- What went to and from the experts by their plans, of the last micro-batch: { bytes, messages, far_bytes, far_messages }.
local function exchanged(model, on_host)
  local sent = { bytes = 0, messages = 0, far_bytes = 0, far_messages = 0 }
  for _, m in ipairs(model:moe_layers()) do
    local group, traffic = model.mesh.expert, m.layer.last_plan:traffic()
    for _, leg in ipairs(LEGS) do
      for r = 1, group.size do
        local far = math.floor((r - 1) / on_host) ~= math.floor(group.rank / on_host)
        for _, what in ipairs { 'bytes', 'messages' } do
          sent[what] = sent[what] + traffic[leg][what][r]
          if far then sent['far_' .. what] = sent['far_' .. what] + traffic[leg][what][r] end
        end
      end
    end
  end
  return sent
end

-- Bytes that went to and from the tier so far.
local function tier_bytes(model)
  local sum, seen = { read = 0, written = 0 }, {}
  for _, p in ipairs(model:named_parameters()) do
    local tier = p.spec.lodging and p.spec.lodging.tier
    if tier and not seen[tier] then
      local bytes = tier:bytes()
      seen[tier], sum.read, sum.written = true, sum.read + bytes.read, sum.written + bytes.written
    end
  end
  return sum
end

-- A step and its counters. short: of a rank that is short of memory, where what is under way gives way to what is made, so
-- that the peak is not a matter of how fast others are.
local function counted(model, optimizer, layout, number, short)
  collect()
  collectgarbage 'stop'
  lumoe.memory_limit(short and 1 or 0, { soft = true })
  lumoe.reset_peak_memory()
  dist.counters { reset = true }
  local before = tier_bytes(model)
  step(model, optimizer, layout, SMALL, number)
  local got, tier = { bytes = 0, messages = 0, memory = {} }, tier_bytes(model)
  got.tier_read, got.tier_written = tier.read - before.read, tier.written - before.written
  lumoe.memory_limit(0, { soft = true })
  collectgarbage 'restart'
  local peak = lumoe.memory().peak
  for _, to in ipairs(dist.counters()) do got.bytes, got.messages = got.bytes + to.bytes, got.messages + to.messages end
  for _, what in ipairs(real.PURPOSES) do got.memory[what] = most(peak[what]) end
  return got
end

--- { parameters, memory by purpose, bytes, beside (the exchange), messages, tier_read, tier_written, exchange, at_leisure }: of
-- the second step, since the first has made what stays; and of a third, in which nothing gives way, the peak of all memory.
function real.measure(layout)
  local model, optimizer = build(layout, real.MODEL, true)
  step(model, optimizer, layout, SMALL, 1)
  local got = counted(model, optimizer, layout, 2, true)
  got.exchange = exchanged(model, layout.on_host or dist.world_size())
  got.beside = got.bytes - (layout.micro_batches or 1) * got.exchange.bytes
  for _, what in ipairs { 'tier_read', 'tier_written', 'bytes', 'messages', 'beside' } do got[what] = most(got[what]) end
  for _, what in ipairs { 'bytes', 'messages', 'far_bytes', 'far_messages' } do got.exchange[what] = most(got.exchange[what]) end
  local leisure = counted(model, optimizer, layout, 3)
  got.parameters, got.at_leisure = most(model:numel()), leisure.memory.total
  forget(model, optimizer)
  return got
end

local WARM, TIMED = 4, 7 -- steps

--- Seconds of a step: the median of several on the slowest rank, after some that compile and fill pools.
function real.seconds(layout, size)
  local model, optimizer = build(layout, size.model)
  local list = {}
  for number = 1, WARM + TIMED do
    dist.barrier()
    local begun = clock()
    step(model, optimizer, layout, size, number)
    list[#list + 1] = number > WARM and most(clock() - begun) or nil
  end
  forget(model, optimizer)
  collect()
  table.sort(list)
  return list[math.ceil(#list / 2)]
end

return real
