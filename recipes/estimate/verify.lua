--- The planner against reality: the recipe's model, small, takes real steps on the ranks at hand, under every layout
-- that they allow, and each figure is held against the runtime's counter of it.
--
-- Routing is made even, as the planner takes it to be: token i goes to the experts after those of token i - 1. What is
-- counted: memory by purpose at its peak (lumoe.memory), bytes and messages sent (dist.counters), parameters.
local lumoe = require 'lumoe'
local report = require 'recipes.estimate.report'
local Translator = require 'recipes.translate.model'
local random = require 'lumoe.random'
local dist, optim = lumoe.dist, lumoe.optim

local verify = {}

local PURPOSES = { 'parameters', 'gradients', 'optimizer', 'activations', 'exchange', 'total' }
local NUMBERS = { parameters = true, ['messages sent'] = true } -- the rest are bytes
local SLACK = 96 * 1024 -- bytes by which a figure may always be off: small things, plans that Lua has yet to collect
local BYTES_OFF = 0.001 -- share by which bytes sent may be off

local MODEL = { dim = 64, heads = 4, hidden = 256, vocab = 1000, encoder_layers = 4, decoder_layers = 2, experts = 8,
  top_k = 2, capacity = 0, dropout = 0.1, balance = 0.01 }
local LENGTHS = { source = 48, target = 40 }
local ROWS = 8 -- sequences of a rank and micro-batch

-- ---- a real step ---------------------------------------------------------------------------

local function route_evenly(layer)
  local learned = layer.router.route
  layer.router.route = function(self, x, tags)
    local choice = learned(self, x, tags)
    local tokens, top_k, ids = x:size(0), choice.expert_ids:size(1), {}
    for i = 0, tokens * top_k - 1 do ids[i + 1] = i % self.experts end
    choice.expert_ids:copy_(lumoe.tensor(ids, { dtype = 'i64' }):reshape(tokens, top_k))
    return choice
  end
end

local function build(layout)
  local opts = { noise = 0, label_smoothing = 0.1, select = 'random' }
  for key, value in pairs(MODEL) do opts[key] = value end
  for _, key in ipairs { 'tp', 'ep', 'etp', 'offload', 'recompute' } do opts[key] = layout[key] end
  opts.zero_dense, opts.zero_expert = layout.zero and layout.zero.dense, layout.zero and layout.zero.expert
  local model = Translator(opts)
  model:initialize()
  if layout.precision == 'bf16' then model:to 'bf16' end
  for _, m in ipairs(model:moe_layers()) do route_evenly(m.layer) end
  dist.shard(model)
  return model:train(), optim.AdamW(model:named_parameters(), {})
end

-- Tokens of sequences that this rank has; all of them valid.
local function batch(rows, first)
  local function ids(len) return lumoe.ones({ rows, len }, { dtype = 'i32' }) end
  local function tags(len)
    return { valid = lumoe.ones({ rows, len }, { dtype = 'u8' }),
      tokens = (lumoe.arange(rows) + first):reshape(rows, 1) * 2 ^ 20 + lumoe.arange(len) }
  end
  return { pad = 0, src = ids(LENGTHS.source), tgt_in = ids(LENGTHS.target), tgt_out = ids(LENGTHS.target),
    src_tags = tags(LENGTHS.source), tgt_tags = tags(LENGTHS.target) }
end

local function step(model, optimizer, layout, number)
  local dp = dist.world_size() / (layout.tp or 1)
  local part = math.floor(dist.rank() / (layout.tp or 1))
  local micro_batches = layout.micro_batches or 1
  random.step(number)
  for micro = 1, micro_batches do
    lumoe.scope(function()
      local nll, encoder, decoder = model:loss(batch(ROWS, part * ROWS))
      local loss = nll / (dp * ROWS * LENGTHS.target) + encoder:float() + decoder:float()
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

local function sent()
  local bytes, messages = 0, 0
  for _, to in ipairs(dist.counters()) do bytes, messages = bytes + to.bytes, messages + to.messages end
  return bytes, messages
end

-- Counters of the second step: the first has made what stays.
local function measure(layout)
  local model, optimizer = build(layout)
  step(model, optimizer, layout, 1)
  collectgarbage()
  collectgarbage()
  lumoe.reset_peak_memory()
  dist.counters { reset = true }
  step(model, optimizer, layout, 2)
  local function most(n) return dist.reduce_number(n, 'max') end -- of all ranks
  local bytes, messages = sent()
  local peak, got = lumoe.memory().peak, { memory = {} }
  got.bytes, got.messages, got.parameters = most(bytes), most(messages), most(model:numel())
  for _, what in ipairs(PURPOSES) do got.memory[what] = most(peak[what]) end
  forget(model, optimizer)
  return got
end

-- ---- beside the planner --------------------------------------------------------------------

local function planned(layout)
  local ranks = dist.world_size()
  return lumoe.estimate { model = MODEL, precision = layout.precision, recompute = layout.recompute,
    mesh = { ranks = ranks, tp = layout.tp, ep = layout.ep, etp = layout.etp, zero = layout.zero, offload = layout.offload },
    batch = { sequences = (layout.micro_batches or 1) * ROWS * ranks / (layout.tp or 1), source = LENGTHS.source,
      target = LENGTHS.target, micro_batches = layout.micro_batches } }
end

-- Lines { what, planned, counted, off, wrong }.
local function compare(plan, got, tolerance)
  local lines = {}
  local function line(what, want, have, allowed, slack)
    local off = have == want and 0 or math.abs(want - have) / math.max(have, 1)
    lines[#lines + 1] = { what = what, planned = want, counted = have, off = off,
      wrong = math.abs(want - have) > slack + allowed * have }
  end
  line('parameters', plan.parameters.here, got.parameters, 0, 0)
  for _, what in ipairs(PURPOSES) do
    -- How many buckets of gradients are on their way at once is a matter of time.
    local timing = (what == 'exchange' or what == 'total') and plan.memory.peak.in_flight or 0
    line('memory: ' .. what, plan.memory.peak[what], got.memory[what], what == 'total' and tolerance or 2 * tolerance,
      (what == 'total' and 0 or SLACK) + timing)
  end
  line('bytes sent', plan.sent.bytes, got.bytes, BYTES_OFF, 0)
  line('messages sent', plan.sent.messages, got.messages, BYTES_OFF, 0)
  return lines
end

-- What the ranks at hand allow.
local function layouts(only)
  local ranks, list = dist.world_size(), {}
  local function add(name, layout)
    layout.name, layout.precision = name, layout.precision or 'f32'
    if not only or name:find(only, 1, true) then list[#list + 1] = layout end
  end
  local function each_way(name, ep)
    add(name, { ep = ep })
    add(name .. ', bf16', { ep = ep, precision = 'bf16' })
    add(name .. ', recomputed', { ep = ep, recompute = true })
  end
  each_way('dp', 1)
  for ep = 2, ranks do
    if ranks % ep == 0 then each_way(('ep %d'):format(ep), ep) end
  end
  for stage = 1, ranks > 1 and 3 or 0 do
    add(('ZeRO-%d, bf16'):format(stage), { zero = { dense = stage, expert = stage }, precision = 'bf16' })
  end
  add('2 micro-batches', { ep = ranks, micro_batches = 2 })
  if ranks > 1 then add('ZeRO-2, 2 micro-batches', { zero = { dense = 2, expert = 2 }, micro_batches = 2 }) end
  add('offload parameters, 2 micro-batches', { offload = 'parameters', micro_batches = 2 })
  add('offload optimizer, bf16', { offload = 'optimizer', precision = 'bf16' })
  add('offload parameters, bf16', { offload = 'parameters', precision = 'bf16' })
  if ranks % 2 == 0 then
    add('tp 2', { tp = 2 })
    add('tp 2, ep 2', { tp = 2, ep = 2 })
    add('tp 2, etp 2, bf16', { tp = 2, etp = 2, precision = 'bf16' })
  end
  return list
end

--- Runs all; returns figures and how many are off. Collective.
function verify.run(opts)
  local results, off = {}, 0
  for _, layout in ipairs(layouts(opts.only)) do
    local plan, got = planned(layout), measure(layout)
    local lines = compare(plan, got, opts.tolerance)
    if dist.rank() == 0 then
      io.stdout:write(('%s: %s\n'):format(layout.name, lumoe.estimate.describe_mesh(plan.context.mesh)))
    end
    for _, line in ipairs(lines) do
      if line.wrong then off = off + 1 end
      if dist.rank() == 0 then
        local text = NUMBERS[line.what] and function(n) return ('%d'):format(n) end or report.bytes
        io.stdout:write(('  %-22s planned %12s   counted %12s   off %6.2f %%%s\n'):format(line.what, text(line.planned),
          text(line.counted), 100 * line.off, line.wrong and '   WRONG' or ''))
      end
    end
    results[#results + 1] = { layout = layout.name, lines = lines }
  end
  if dist.rank() == 0 then
    io.stdout:write(off == 0 and ('all within %.0f %% (memory; %.0f %% of each purpose) and %.1f %% (bytes, messages)\n')
        :format(100 * opts.tolerance, 200 * opts.tolerance, 100 * BYTES_OFF)
      or ('%d figures are off\n'):format(off))
  end
  return results, off
end

return verify
