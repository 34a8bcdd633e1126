local lumoe = require 'lumoe'
local Translator = require 'recipes.translate.model'
local training = require 'recipes.translate.training'
local dir = require 'pl.dir'
local path = require 'pl.path'
local random = require 'lumoe.random'

-- A mean over tokens of what each is alone: unlike the load-balancing loss it does not matter which others are
-- in the micro-batch.
local function alone(choice, batch) return batch:mean(choice.scores:square():sum(-1)) * 0.3 end

describe('micro-batches', function()
  local root, batches
  setup(function()
    root = path.tmpname()
    os.remove(root)
    dir.makepath(root)
    local tok = lumoe.text.load 'tests/fixtures/first_steps/spm-500.model'
    local streams = tok:encode_tsv('tests/fixtures/bible_en_es.tsv', { root .. '/en', root .. '/es' })
    batches = lumoe.data.batches.new { tokenizer = tok, languages = { 'en', 'es' }, tokens = 1500, max_pieces = 96,
      source_tags = true, tasks = {
        { source = streams[2], target = streams[1], from = 'es', to = 'en' },
        { source = streams[1], from = 'en', to = 'en', kind = 'denoising' },
      } }
  end)
  teardown(function() dir.rmtree(root) end)

  -- The rows of one step, cut into `n` micro-batches; [i] = { source, target pieces } of each.
  local function cut(n)
    local list = { pad = batches.pad }
    for micro = 0, n - 1 do
      local raw = batches:get(0, 0, micro, n)
      list[micro + 1] = { raw.src_tokens, raw.tgt_tokens }
    end
    function list.get(_, step, micro, rank, ranks)
      assert(step == 0 and rank == 0 and ranks == 1)
      local raw = batches:get(0, 0, micro, n)
      raw.micro_src_tokens, raw.micro_tgt_tokens = raw.src_tokens, raw.tgt_tokens
      return raw
    end
    return list
  end

  -- Loss, norm and gradients of a step in n micro-batches. Nothing is dropped, nothing drawn.
  local function step(n, balance)
    lumoe.manual_seed(4)
    local model = Translator { vocab = 500, dim = 32, heads = 2, hidden = 48, encoder_layers = 2, decoder_layers = 2,
      dropout = 0, experts = 4, top_k = 2, capacity = 0, noise = 0, balance = 0.01, ep = 1, max_pieces = 96,
      label_smoothing = 0.1 }
    model:initialize()
    for _, moe in ipairs(model:moe_layers()) do moe.layer.balance = { balance } end
    model:train()
    random.step(1)
    local loss, tokens = training.gradients(model, cut(n), 1, n)
    return loss, lumoe.dist.grad_norm(model), model, tokens
  end

  local function apart(a, b) -- relative to a's norm
    local sum, norm = 0, 0
    for i, p in ipairs(a:named_parameters()) do
      local q = b:named_parameters()[i]
      sum = sum + (p.tensor.grad - q.tensor.grad):square():sum():item()
      norm = norm + p.tensor.grad:square():sum():item()
    end
    return math.sqrt(sum / norm)
  end

  it('differ in their shares of source and target pieces', function()
    local parts, src, tgt = cut(3), 0, 0
    for i = 1, 3 do src, tgt = src + parts[i][1], tgt + parts[i][2] end
    assert.is_true(math.abs(parts[1][1] / src - parts[1][2] / tgt) > 0.001) -- or the next test would prove little
  end)

  it('change neither loss nor gradients: balancing losses count by their pieces, in encoder and decoder', function()
    local loss, norm, model, tokens = step(1, alone)
    local loss_3, norm_3, model_3, tokens_3 = step(3, alone)
    assert.equal(tokens, tokens_3)
    assert.near(1, loss_3 / loss, 1e-6)
    assert.near(1, norm_3 / norm, 1e-6)
    assert.is_true(apart(model, model_3) < 2e-6)
    local _, _, without = step(1, function() end)
    assert.is_true(apart(model, without) > 1e-3) -- and the balancing loss was felt
  end)

  -- Its loads are those of the micro-batch: that much they must change, and only that.
  it('change what the load-balancing loss says, a little', function()
    local loss, _, model = step(1, lumoe.moe.balance.load(0.3))
    local loss_3, _, model_3 = step(3, lumoe.moe.balance.load(0.3))
    assert.near(1, loss_3 / loss, 1e-6)
    local difference = apart(model, model_3)
    assert.is_true(difference > 1e-5 and difference < 0.05, tostring(difference))
  end)
end)
