-- Run by zero_spec.lua and offload_spec.lua: a few training steps of a small model with tied weights, experts and sizes that
-- do not divide, under one layout after the other. Every rank takes its share of the same global batches.
-- Each rank writes what it holds to FILE.layout.rank, elements under their numbers in the whole parameter:
-- gradients after the first step, parameters after the last, the losses and norms of all.
--   zero.lua FILE 'key=value ...' ...
local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'
local offload = require 'lumoe.dist.offload'
local random = require 'lumoe.random'
local shard = require 'lumoe.dist.shard'
local dist, moe, nn, optim = lumoe.dist, lumoe.moe, lumoe.nn, lumoe.optim

local DEFAULTS = { ep = '1', dense = '0', expert = '0', micro = '1', dtype = 'f32', optimizer = 'AdamW', deal = 'even', last = 'yes',
  sharded = 'yes', fail = 'no', steps = '5', recompute = 'no', experts = '5', offload = 'no', bucket = '2000', mapped = 'no',
  clip = 'scale' }
local BATCH, TIME, DIM, VOCAB = 8, 5, 6, 13
local rank, size = dist.rank(), dist.world_size()
if size > 1 then C.lm_shard_set_bucket(300) end -- several buckets to a unit

local function run(file, opts)
  local MICRO, STEPS = tonumber(opts.micro), tonumber(opts.steps)
  collectgarbage() -- of the layout before
  collectgarbage()
  local before = lumoe.memory().live
  lumoe.manual_seed(5)
  local mesh = dist.mesh { ep = tonumber(opts.ep), zero = { dense = tonumber(opts.dense), expert = tonumber(opts.expert) },
    offload = opts.offload ~= 'no' and { to = opts.offload, bucket = tonumber(opts.bucket), mapped = opts.mapped == 'yes' } or nil }

  local Model = nn.class 'Model'
  function Model:init()
    self.embedding = nn.Embedding { VOCAB, DIM }
    self.layers = {}
    for i = 1, 2 do
      self.layers[i] = nn.TransformerEncoderLayer { dim = DIM, heads = 2, dropout = 0.1, hidden = 7,
        recompute = opts.recompute == 'yes' or nil,
        feed_forward = moe.Layer { dim = DIM, mesh = mesh, router = moe.routers.top_k { dim = DIM, top_k = 1 }, normalize = false,
          experts = moe.FFN { experts = tonumber(opts.experts), hidden = 7, bias = true }, balance = { moe.balance.load(0.05) } } }
    end
    self.norm = nn.LayerNorm { DIM }
    nn.parameter(self, 'scale', { 1 }, { init = 'ones' }) -- fewer elements than ranks
    nn.parameter(self, 'idle', { 3 }, { init = 'ones' }) -- no gradient reaches it
  end
  function Model:loss(ids, targets, tags)
    local x, total = self.embedding(ids), nil
    for round = 1, 2 do -- the first layer is called twice
      for i = 1, round == 1 and 1 or 2 do
        local aux
        x, aux = self.layers[i](x, tags)
        total = total and total + aux or aux
      end
    end
    local logits = (self.norm(x) * self.scale):linear(self.embedding.weight)
    return logits:cross_entropy(targets, { reduction = 'none' }), total
  end

  local model = Model()
  model:initialize()
  if opts.dtype == 'bf16' then model:to 'bf16' end
  if opts.sharded == 'yes' then dist.shard(model, mesh) end
  -- A key's bias has no gradient but rounding, which a small eps would make steps of.
  local optimizer = optim[opts.optimizer](model:named_parameters(), { lr = 0.01, eps = opts.optimizer == 'AdamW' and 1e-3 or nil })
  model:train()

  -- ---- the batches -----------------------------------------------------------------------------

  local function holder(b)
    if opts.deal == 'uneven' then return size == 1 and 0 or 1 + b % (size - 1) end -- rank 0 has none
    return math.floor(b * size / BATCH)
  end

  -- The rows of a micro-batch that are this rank's: token ids, targets and tags.
  local function batch(step, micro)
    local ids, targets, tokens = {}, {}, {}
    for b = 0, BATCH - 1 do
      if holder(b) == rank then
        local i, t = {}, {}
        for k = 0, TIME - 1 do
          i[k + 1] = opts.deal == 'one' and 3 or (b * 7 + k * 5 + step * 3 + micro) % VOCAB
          t[k + 1] = (b * 3 + k * 11 + step + micro * 2) % VOCAB
        end
        local numbers = {}
        for k = 0, TIME - 1 do numbers[k + 1] = (micro * BATCH + b) * 2 ^ 32 + k end
        ids[#ids + 1], targets[#targets + 1], tokens[#tokens + 1] = i, t, numbers
      end
    end
    local function made(list, dtype)
      return #list > 0 and lumoe.tensor(list, { dtype = dtype }) or lumoe.zeros({ 0, TIME }, { dtype = dtype })
    end
    local rows = made(ids, 'i32')
    return rows, made(targets, 'i32'), { tokens = made(tokens, 'i64'), valid = (rows + 1):gt(0) }
  end

  -- ---- what is written -------------------------------------------------------------------------

  local out = assert(io.open(file, 'w'))

  -- Elements [first, ...) of what this rank holds of p, by their numbers in the whole.
  local function write(what, p, first, values)
    local ranges = p.spec.at and p.spec.at[0] or { { 0, p.spec.whole[1] } }
    local unit, ids = 1, {}
    for d = 2, #p.spec.whole do unit = unit * p.spec.whole[d] end
    for _, range in ipairs(ranges) do
      for id = range[1], range[1] + range[2] - 1 do ids[#ids + 1] = id end
    end
    for i, v in ipairs(values:float():flatten():totable()) do
      local here = first + i - 1
      out:write(('%s %s %d = %.9g\n'):format(what, p.name, ids[math.floor(here / unit) + 1] * unit + here % unit, v))
    end
  end

  local function write_gradients(step)
    for _, p in ipairs(model:named_parameters()) do
      local t = p.tensor
      local grad, first = t.grad, 0
      if offload.of(p) then grad, first = offload.gradient(p), shard.range(t)[1]
      elseif grad == nil and C.lm_shard_stage(require('lumoe.handle').pointer(t)) > 1 then
        grad, first = shard.chunk(t).grad, shard.range(t)[1]
      end
      if grad ~= nil and grad:numel() > 0 then write('grad ' .. step, p, first, grad) end
    end
  end

  -- ---- training --------------------------------------------------------------------------------

  -- Once, in the middle of backward: on every rank, and then it goes on; or on the last alone, which ends the job.
  local fails = opts.fail == 'yes' or opts.fail == 'alone'
  local trap = lumoe.custom {
    forward = function(_, x) return x end,
    backward = function(_, dy)
      if fails and (opts.fail == 'yes' or rank == size - 1) then error('a slip', 0) end
      return dy
    end,
  }

  local function micro_step(step, micro)
    return lumoe.scope(function()
      local ids, targets, tags = batch(step, micro)
      if fails and step == 2 then
        local layer = model.layers[1]
        local hidden = layer:forward(trap(model.embedding(ids)), tags)
        hidden:square():sum():backward { last = opts.last == 'yes' }
      end
      local losses, aux = model:loss(ids, targets, tags)
      local loss = losses:sum() / (BATCH * TIME * MICRO) + aux:float() / MICRO
      loss:backward { last = opts.last == 'yes' and micro == MICRO - 1 }
      return loss:item()
    end)
  end

  local function train_step(step)
    random.step(step)
    local loss = 0
    for micro = 0, MICRO - 1 do loss = loss + micro_step(step, micro) end
    dist.reduce_gradients(model)
    local norm = dist.grad_norm(model)
    if step == 1 then write_gradients(step) end
    if opts.clip == 'gradients' then
      assert(dist.clip_grad_norm(model, 0.7) == norm)
      assert(math.abs(dist.grad_norm(model) - math.min(norm, 0.7)) < 1e-6)
      optimizer:step {}
    else
      optimizer:step { grad_scale = optim.clip_scale(norm, 0.7) }
    end
    optimizer:zero_grad()
    out:write(('loss %d = %.9g\nnorm %d = %.9g\n'):format(step, dist.reduce_number(loss), step, norm))
  end

  for step = 1, STEPS do
    local ok, message = pcall(train_step, step)
    if not ok then
      if not fails or opts.fail == 'alone' then error(message, 0) end
      assert(message:find 'a slip', message)
      fails = false
      optimizer:zero_grad()
      train_step(step)
    end
  end
  if opts.deal == 'one' then
    local idle = false
    for _, n in ipairs(model.layers[1].feed_forward:summary().load) do idle = idle or n == 0 end
    assert(idle, 'an expert was to have no tokens')
  end
  if opts.fail == 'yes' then assert(not fails, 'it was to fail') end

  model.layers[1].feed_forward.last_plan, model.layers[2].feed_forward.last_plan = nil, nil
  collectgarbage()
  collectgarbage()
  local live = lumoe.memory().live
  for _, purpose in ipairs { 'parameters', 'gradients', 'optimizer', 'exchange' } do
    out:write(('bytes %s = %d\n'):format(purpose, live[purpose] - before[purpose]))
  end
  dist.gathered(model, function()
    for _, p in ipairs(model:named_parameters()) do
      if p.tensor:numel() > 0 then lumoe.no_grad(write, 'final', p, 0, p.tensor:detach()) end
    end
  end)
  out:close()
end

for i = 2, #arg do
  local opts = {}
  for key, value in pairs(DEFAULTS) do opts[key] = value end
  for key, value in arg[i]:gmatch '(%w+)=(%S+)' do
    assert(opts[key], key)
    opts[key] = value
  end
  run(('%s.%d.%d'):format(arg[1], i - 1, rank), opts)
end
