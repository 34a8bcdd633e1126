--- Training: one loop, from any step on, the same on one rank and on many.
local lumoe = require 'lumoe'
local stopping = require 'recipes.translate.stopping'
local Translator = require 'recipes.translate.model'
local corpus = require 'recipes.translate.corpus'
local load = require 'recipes.translate.load'
local resuming = require 'recipes.translate.resuming'
local random = require 'lumoe.random'
local path = require 'pl.path'
local dist, optim, log, checkpoint = lumoe.dist, lumoe.optim, lumoe.log, lumoe.checkpoint
local clock = require('lumoe.log.terminal').clock

local training = {}

local MEASURED = { skipped = 15, steps = 45 } -- of a run: their speed turns minutes into steps

--- The model as the options describe it, in the precision asked for.
function training.model(opts)
  local model = Translator(opts)
  model:initialize()
  return opts.precision == 'bf16' and model:to 'bf16' or model
end

local function of_micro_batch(model, batches, step, micro, last)
  local group = model.mesh.data
  local raw = batches:get(step - 1, micro, group.rank, group.size)
  local nll, encoder, decoder = model:loss(corpus.tensors(raw, batches.pad))
  local loss = nll / raw.step_tgt_tokens
  if encoder then loss = loss + encoder:float() * (raw.micro_src_tokens / raw.step_src_tokens) end
  if decoder then loss = loss + decoder:float() * (raw.micro_tgt_tokens / raw.step_tgt_tokens) end
  loss:backward { last = last }
  return nll:item() / raw.step_tgt_tokens, raw.step_src_tokens + raw.step_tgt_tokens
end

--- The gradients of one step, from every micro-batch's share of its loss: this rank's part of the loss, and the
-- step's tokens. The loss of a step is the sum over its targets divided once by their number, whoever computes
-- which (DESIGN.md, "One rule for scale"); a balancing loss, a mean over a micro-batch's pieces, counts by its share
-- of the step's pieces: source pieces in the encoder, target pieces in the decoder.
-- So micro-batches change nothing but what is decided over each of them: capacity, and the loads that a
-- balancing loss multiplies with mean scores.
function training.gradients(model, batches, step, micro_batches)
  local total, tokens = 0, 0
  for micro = 0, micro_batches - 1 do
    local loss
    loss, tokens = lumoe.scope(of_micro_batch, model, batches, step, micro, micro == micro_batches - 1)
    total = total + loss
  end
  return total, tokens
end

-- One step: gradients, one update.
local function train_step(self, step)
  local opts, totals = self.opts, {}
  random.step(step)
  totals.loss, totals.tokens = training.gradients(self.model, self.batches, step, opts.micro_batches)
  dist.reduce_gradients(self.model)
  totals.grad_norm = dist.grad_norm(self.model)
  totals.lr = self.schedule(step)
  self.optimizer:step { lr = totals.lr, grad_scale = optim.clip_scale(totals.grad_norm, opts.clip) }
  self.optimizer:zero_grad()
  totals.loss = dist.reduce_number(totals.loss, 'sum', self.model.mesh.data)
  return totals
end

-- The learning rate sees steps only. Until minutes have become steps, it is the warm-up or its end.
local function schedule_of(self)
  local opts, shape = self.opts, nil
  local before = optim.schedule { 'constant', lr = opts.lr, warmup = opts.warmup }
  return function(step)
    if self.steps and not shape then
      shape = optim.schedule { opts.schedule, lr = opts.lr, warmup = opts.warmup, steps = self.steps, floor = 0.02 }
    end
    return (shape or before)(step)
  end
end

-- Load, drops and evenness of every MoE layer since the last record.
local function usage(self)
  local layers, dropped, routed = {}, 0, 0
  for _, moe in ipairs(self.moe_layers) do
    local summary = moe.layer:summary()
    layers[moe.path] = summary
    for _, n in ipairs(summary.load) do routed = routed + n end
    dropped = dropped + summary.dropped
    moe.layer:reset_stats()
  end
  return layers, routed > 0 and dropped / routed or 0
end

-- The loss of the validation sentences by target piece, as the training loss is: with label smoothing, but
-- without dropout, noise and drops.
local function valid_loss(self)
  if not self.valid then return nil end
  local sum, count, group = 0, 0, self.model.mesh.data
  self.model:eval()
  lumoe.no_grad(function()
    for step = 0, self.valid.steps - 1 do
      lumoe.scope(function()
        local raw = self.valid:get(step, 0, group.rank, group.size)
        local batch = corpus.tensors(raw, self.valid.pad)
        batch.src_tags.tokens, batch.tgt_tags.tokens = nil, nil -- sentences of several tasks share numbers
        sum = sum + self.model:loss(batch):item()
        count = count + raw.step_tgt_tokens
      end)
    end
  end)
  self.model:train()
  for _, moe in ipairs(self.moe_layers) do moe.layer:reset_stats() end -- they tell of training
  return dist.reduce_number(sum, 'sum', group) / count
end

local function save(self, step, loss)
  local state = { opts = self.opts, steps = self.steps, tokens = self.tokens, seconds = self.seconds,
    tokenizer = self.tokenizer, data = self.data }
  checkpoint.save(self.out, { model = self.model, optimizer = self.optimizer, step = step, extra = state, keep = 2,
    best = loss and -loss })
end

local function resume(self, data)
  local last = checkpoint.latest(self.out)
  if not last then lumoe.refuse('--resume: %s has no checkpoint', self.out) end
  resuming.check(self.opts, data, load(last).extra, last)
  local at = load(last, { model = self.model, optimizer = self.optimizer })
  corpus.check_tokenizer(data, at.extra.tokenizer, last)
  self.steps = self.steps or at.extra.steps
  self.tokens, self.seconds = at.extra.tokens, at.extra.seconds
  return at.step
end

-- Minutes become steps once, from the first steps' speed; every rank takes rank 0's word for it.
local function fix_steps(self, step, seconds)
  local measured = seconds / MEASURED.steps
  local left = self.opts.minutes * 60 - self.seconds
  local steps = math.max(step, step + math.floor(left / measured))
  return dist.reduce_number(dist.rank() == 0 and steps or 0)
end

--- Trains by `opts` on `data`, writing under `out`. Returns the model and { step, seconds, tokens, loss, stopped }.
function training.run(opts, data, out)
  local lead = dist.rank() == 0
  local self = { opts = opts, out = out, tokens = 0, seconds = 0, steps = opts.steps,
    tokenizer = data.tokenizer.hash, data = resuming.sizes(data) }
  lumoe.manual_seed(opts.seed)
  self.batches, self.valid = corpus.batches(data, opts), corpus.valid_batches(data, opts)
  self.model = dist.shard(training.model(opts))
  self.optimizer = optim.AdamW(self.model:named_parameters(), { betas = { 0.9, 0.98 }, eps = 1e-9, weight_decay = 0 })
  self.schedule = schedule_of(self)
  self.moe_layers = self.model:moe_layers()
  self.model:train()
  local first = opts.resume and resume(self, data) + 1 or 1

  local records = lead and log.jsonl(path.join(out, 'metrics.jsonl'), { resume_step = opts.resume and first - 1 or nil })
  local board = lead and log.tensorboard(path.join(out, 'tensorboard'), { resume_step = opts.resume and first - 1 or nil })
  local bar = log.progress { desc = 'train', total = self.steps or 1e6, initial = first - 1, quiet = not lead }
  local begun, before = clock(), self.seconds
  local saved, measured_from, last = begun, nil, nil
  stopping.watch()

  local step = first - 1
  while step < (self.steps or math.huge) do
    step = step + 1
    local now = train_step(self, step)
    self.tokens = self.tokens + now.tokens
    self.seconds = before + clock() - begun
    last = now

    if not self.steps then
      if step == first + MEASURED.skipped then measured_from = clock() end
      if step == first + MEASURED.skipped + MEASURED.steps then
        self.steps = fix_steps(self, step, clock() - measured_from)
        bar.total = self.steps
      end
    end
    bar:update(1, { tokens = now.tokens, loss = now.loss, dropped = self.dropped, lr = now.lr })
    -- Time decides when to save, but only at steps that are logged, so that every record is a whole one.
    local logged, stop = step % opts.log_every == 0 or step == self.steps, stopping.asked()
    local late = lead and clock() - saved > opts.checkpoint_minutes * 60
    local layers, loss
    if logged then layers, self.dropped = usage(self) end
    local due = stop or step == self.steps or (logged and dist.reduce_number(late and 1 or 0) > 0)
    if due then loss = valid_loss(self) end
    if logged and lead then
      records:write { step = step, loss = now.loss, valid_loss = loss, tokens = self.tokens, seconds = self.seconds,
        tokens_per_s = self.tokens / self.seconds, lr = now.lr, grad_norm = now.grad_norm, dropped = self.dropped,
        layers = layers }
      board:scalars(step, { loss = now.loss, valid_loss = loss, lr = now.lr, grad_norm = now.grad_norm,
        dropped = self.dropped })
      if loss then bar:message(('step %d: validation loss %.3f'):format(step, loss)) end
    end
    if due then -- after its record: killed in between, the run goes on from before both
      save(self, step, loss)
      saved = clock()
    end
    if stop then break end
  end
  stopping.ignore()
  bar:close()
  if lead then
    records:close()
    board:close()
  end
  return dist.unshard(self.model), { step = step, steps = self.steps, seconds = self.seconds, tokens = self.tokens,
    loss = last and last.loss, stopped = step < (self.steps or math.huge) }
end

return training
