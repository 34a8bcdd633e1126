local cjson = require 'cjson'
local path = require 'pl.path'
local run = require 'tests.recipes.run'
local utils = require 'pl.utils'

local GOLDEN = 'tests/fixtures/first_steps/losses.json'

describe('training in recipes/translate.lua', function()
  local root, baseline
  setup(function()
    root = run.workplace()
    baseline = run.trained(root, 'alone', { steps = 50 })
  end)
  teardown(function() run.remove(root) end)

  -- The tokenizer is committed too: another SentencePiece may train another one.
  it('has the losses that it always had in its first steps', function()
    local golden = cjson.decode(utils.readfile(GOLDEN))
    local other = run.workplace()
    finally(function() run.remove(other) end)
    assert.equal(0, (run.translate(other, 'prepared', { steps = 0 })))
    utils.writefile(other .. '/data/spm-500.model', utils.readfile('tests/fixtures/first_steps/spm-500.model', true), true)
    for name, want in pairs(golden) do
      run.same(want.records, run.trained(other, name, want.options), 1e-4, { 'loss', 'grad_norm', 'tokens', 'dropped' })
    end
  end)

  it('learns, drops some tokens and says how it is used', function()
    assert.equal(50, #baseline)
    local first, last = baseline[1], baseline[50]
    assert.is_true(last.loss < first.loss - 0.5)
    local dropped = 0
    for step, record in ipairs(baseline) do
      dropped = dropped + record.dropped
      assert.equal(step, record.step)
      for _, field in ipairs { 'loss', 'tokens', 'tokens_per_s', 'seconds', 'lr', 'grad_norm', 'dropped' } do
        assert.is_number(record[field], field)
      end
      for _, layer in ipairs { 'encoder.2.feed_forward', 'decoder.2.feed_forward' } do
        assert.equal(4, #record.layers[layer].load)
        assert.is_number(record.layers[layer].entropy)
      end
    end
    assert.is_true(dropped / 50 > 0.01)
    assert.near(0.003 * (0.02 + 0.98 * math.sqrt(10 / 50)), last.lr, 1e-9)
  end)

  for _, layout in ipairs { { 2, 1, 1, 1 }, { 2, 2, 1, 1, 'once' }, { 4, 2, 1, 1 }, { 4, 4, 1, 1, 'two_level' }, { 2, 1, 1, 2 },
    { 4, 2, 2, 2 } } do
    local ranks, ep, etp, tp, exchange = unpack(layout)
    exchange = exchange or 'rows'
    it(('is the same run on %d ranks with the experts over %d, etp %d, tp %d, exchange %s'):format(ranks, ep, etp, tp,
      exchange), function()
      local options = { steps = 50, ep = ep, etp = etp, tp = tp, exchange = exchange }
      run.same(baseline, run.trained(root, table.concat(layout, '-'), options, { ranks = ranks }), 1e-4)
    end)
  end

  it('is the same run in micro-batches on other ranks', function()
    local options = { steps = 10, ['micro-batches'] = 3 }
    local want = run.trained(root, 'micro', options)
    options.ep = 2
    run.same(want, run.trained(root, 'micro-2', options, { ranks = 2 }), 1e-4)
  end)

  it('is the same run when layers are computed again', function()
    run.same(baseline, run.trained(root, 'again', { recompute = true, steps = 50 }), 0)
  end)

  it('is the same run without the compiler of LuaJIT', function()
    local records = run.trained(root, 'interpreted', { steps = 10 }, { flags = '-joff' })
    run.same({ unpack(baseline, 1, 10) }, records, 1e-6)
  end)

  it('is another run with another seed', function()
    local records = run.trained(root, 'seed', { steps = 2, seed = 2 })
    assert.is_false(pcall(run.same, { baseline[1], baseline[2] }, records, 1e-4))
  end)

  it('goes on after --resume as the unbroken run does', function()
    run.trained(root, 'halves', { steps = 20 })
    local code, _, errors = run.translate(root, 'halves', { steps = 50, resume = true })
    assert.equal(0, code, errors)
    run.same(baseline, run.records(root, 'halves'), 1e-6)
  end)

  it('goes on with other numbers of ranks', function()
    run.trained(root, 'moving', { steps = 12 }, { ranks = 2 })
    run.trained(root, 'moving', { steps = 25, ep = 4, resume = true }, { ranks = 4 })
    run.trained(root, 'moving', { steps = 35, ep = 2, tp = 2, resume = true }, { ranks = 4 })
    run.same(baseline, run.trained(root, 'moving', { steps = 50, resume = true }), 1e-4)
  end)

  it('is the same run when replicas divide what they hold, stage after stage', function()
    local function goes_on(steps, ranks, ep, dense, expert)
      return run.trained(root, 'divided', { steps = steps, ep = ep, ['zero-dense'] = dense, ['zero-expert'] = expert,
        resume = steps > 15 }, { ranks = ranks })
    end
    goes_on(15, 4, 2, 3, 3)
    goes_on(25, 2, 1, 1, 2)
    goes_on(40, 3, 1, 2, 3)
    run.same(baseline, goes_on(50, 1, 1, 0, 0), 1e-4)
  end)

  it('is the same run with parameters and state in files', function()
    run.trained(root, 'away', { steps = 8, offload = 'parameters' })
    run.same({ unpack(baseline, 1, 16) }, run.trained(root, 'away', { steps = 16, offload = 'optimizer', resume = true }), 1e-6)
  end)

  it('does nothing more when all steps are done', function()
    local before = run.records(root, 'halves')
    run.same(before, run.trained(root, 'halves', { steps = 50, resume = true }), 0)
  end)

  it('runs in bf16, near f32', function()
    local records = run.trained(root, 'bf16', { steps = 10, precision = 'bf16' })
    run.same({ unpack(baseline, 1, 10) }, records, 0.03, { 'loss' })
    assert.is_false(pcall(run.same, { unpack(baseline, 1, 10) }, records, 1e-6, { 'loss' }))
  end)

  for name, options in pairs {
    ['a dense model'] = { experts = 1, ['top-k'] = 1 },
    ['translation alone'] = { denoising = 0, directions = 'into' },
    ['denoising alone'] = { denoising = 1 },
    ['one expert a token'] = { ['top-k'] = 1, noise = 0 },
    ['a dropless one'] = { capacity = 0 },
    ['other survivors'] = { select = 'probability', directions = 'from' },
  } do
    it('runs ' .. name, function()
      local records = run.trained(root, (name:gsub(' ', '-')), options)
      assert.equal(5, #records)
      assert.is_true(records[5].loss > 3 and records[5].loss < 9)
      if options.capacity == 0 or options.experts == 1 then assert.equal(0, records[5].dropped) end
      if options.experts == 1 then assert.is_nil(next(records[5].layers)) end
    end)
  end

  it('turns minutes into steps once, and keeps them', function()
    local _, _, errors = run.translate(root, 'minutes', { steps = false, minutes = 0.02, ['checkpoint-minutes'] = 0 })
    local steps = tonumber(errors:match 'trained (%d+) steps')
    assert.is_true(steps >= 60, errors)
    local index = cjson.decode(utils.readfile(('%s/minutes/checkpoint-%d/index.json'):format(root, steps)))
    assert.equal(steps, index.extra.steps)
    assert.equal(steps, #run.records(root, 'minutes'))
    -- Stopped before it was known how many, it finds out after.
    local early = root .. '/early'
    run.trained(root, 'early', { steps = 20 })
    local file = early .. '/checkpoint-20/index.json'
    local saved = cjson.decode(utils.readfile(file))
    saved.extra.steps = nil
    utils.writefile(file, cjson.encode(saved))
    local code, _, said = run.translate(root, 'early', { steps = false, minutes = 0.02, resume = true })
    assert.equal(0, code, said)
    assert.is_true(tonumber(said:match 'trained (%d+) steps') >= 60)
  end)

  it('keeps the last two checkpoints', function()
    run.trained(root, 'kept', { ['checkpoint-minutes'] = 0, steps = 4 })
    assert.is_false(path.exists(root .. '/kept/checkpoint-2') and true or false)
    assert.is_true(path.isfile(root .. '/kept/checkpoint-3/index.json'))
    assert.is_true(path.isfile(root .. '/kept/checkpoint-4/index.json'))
  end)
end)
