--- Training steps of the recipe's model. One step is what recipes/translate/training.lua does in one, without
-- the data's part. Under mpirun each rank takes its share of every batch; gradients_after: gradients leave for the other
-- ranks when backward is done, not before.
local ffi = require 'ffi'
local lumoe = require 'lumoe'
local corpus = require 'recipes.translate.corpus'
local training = require 'recipes.translate.training'
local dist, optim = lumoe.dist, lumoe.optim
local random = require 'lumoe.random'
local serve = require 'tests.bench.programs.serve'

-- What data.batches:get gives, with ids at random: this rank's rows of it.
local function raw(job, b, model)
  local first, rows = dist.share(b.rows, model.mesh.data.rank, model.mesh.data.size)
  local whole = {} -- what the parts point into
  local function part(array, width)
    whole[#whole + 1] = array
    return array + first * width
  end
  local function ints(list, ctype)
    local array = ffi.new((ctype or 'int32_t') .. '[?]', #list)
    for i, n in ipairs(list) do array[i - 1] = n end
    return part(array, 1)
  end
  local function ids(lens, width)
    local array = ffi.new('int32_t[?]', b.rows * width)
    for r = 0, b.rows - 1 do
      for t = 0, width - 1 do array[r * width + t] = t < lens[r + 1] and math.random(4, job.vocab - 1) or job.pad end
    end
    return part(array, width)
  end
  local zeros, numbers = {}, {}
  for r = 1, b.rows do zeros[r], numbers[r] = 0, r - 1 end
  return {
    whole = whole, rows = rows, src_len = b.src_len, tgt_len = b.tgt_len,
    src = ids(b.src_lens, b.src_len), tgt_in = ids(b.tgt_lens, b.tgt_len), tgt_out = ids(b.tgt_lens, b.tgt_len),
    src_lens = ints(b.src_lens), tgt_lens = ints(b.tgt_lens), sequence = ints(numbers, 'int64_t'),
    src_language = ints(zeros), tgt_language = ints(zeros), tag = ints(zeros),
    targets = b.tgt_tokens,
  }
end

serve(function(job)
  local model = dist.shard(training.model(job))
  model:train()
  local batches = {}
  for i, b in ipairs(job.batches) do batches[i] = raw(job, b, model) end
  local optimizer = optim.AdamW(model:named_parameters(), { betas = { 0.9, 0.98 }, eps = 1e-9, weight_decay = 0 })

  local done = 0
  local function step(lap)
    local b = batches[done % #batches + 1]
    done = done + 1
    random.step(done)
    local value
    lumoe.scope(function()
      local nll, encoder, decoder = model:loss(corpus.tensors(b, job.pad))
      lap 'forward'
      local loss = nll / b.targets
      if encoder then loss = loss + encoder:float() end
      if decoder then loss = loss + decoder:float() end
      loss:backward { last = not job.gradients_after }
      value = nll:item() / b.targets
    end)
    dist.reduce_gradients(model)
    lap 'backward'
    optimizer:step { lr = 1e-4, grad_scale = optim.clip_scale(dist.grad_norm(model), 1) }
    optimizer:zero_grad()
    lap 'update'
    return { loss = dist.reduce_number(value) }
  end
  return step, { parameters = model:numel() }
end)
