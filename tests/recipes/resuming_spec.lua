local options = require 'recipes.translate.options'
local resuming = require 'recipes.translate.resuming'
local run = require 'tests.recipes.run'
local tablex = require 'pl.tablex'

describe('a run that goes on', function()
  local data = { dir = 'data/x', streams = { de = { { tokens = 30 }, { tokens = 12 } } } }

  -- Whether what was trained with the options `before` may go on with `now`: nil, or what is said.
  local function refusal(before, now, sizes)
    local stored = options.parse(before)
    local ok, message = pcall(resuming.check, options.parse(now), data,
      { opts = stored, data = sizes or resuming.sizes(data) }, 'runs/a/checkpoint-7')
    return not ok and message or nil
  end

  it('may be computed otherwise', function()
    assert.is_nil(refusal({}, { '--minutes', '3', '--precision', 'f32', '--recompute', '--exchange', 'once', '--zero-dense', '2',
      '--offload', 'optimizer', '--out', 'elsewhere', '--checkpoint-minutes', '9', '--log-every', '3', '--beam', '1',
      '--test-sentences', '9', '--no-eval', '--data-dir', 'moved' }))
    assert.is_nil(refusal({ '--steps', '5' }, { '--steps', '9' }))
    assert.is_nil(refusal({ '--lr', '0.1' }, { '--lr', '0.10000000000000001' }))
  end)

  it('is the same run in all that decides a step', function()
    local changed = {
      langs = 'de', directions = 'both', denoising = 0.2, temperature = 2, vocab = 900, ['max-pieces'] = 65, dim = 64, heads = 2,
      hidden = 320, ['encoder-layers'] = 3, ['decoder-layers'] = 3, experts = 4, ['top-k'] = 2, capacity = 2,
      select = 'position', balance = 0.1, noise = 1, dropout = 0.2, batch = 2048, ['micro-batches'] = 2, lr = 0.1,
      schedule = 'linear', warmup = 10, ['label-smoothing'] = 0, clip = 2, seed = 2,
    }
    for name, value in pairs(changed) do
      local message = refusal({}, { '--' .. name, tostring(value) })
      assert.matches(('^%-%-resume: runs/a/checkpoint%-7 was trained with %-%-%s %S+, and now it is %S+; go on with that, or')
        :gsub('%%s', (name:gsub('%-', '%%%%-')), 1), message or name .. ' is not compared')
      assert.truthy(message:find('now it is ' .. value, 1, true), message)
    end
    assert.matches('trained with %-%-langs de,fr,es,it, and now it is de,it', refusal({}, { '--langs', 'de,it' }))
  end)

  it('is one on the same text', function()
    assert.matches('trained on other data: the de texts in data/x had 40 pieces, and now it is 42', refusal({}, {}, { de = 40 }))
    assert.matches('the fr texts in data/x had 7 pieces, and now it is 0', refusal({}, {}, { de = 42, fr = 7 }))
  end)

  it('compares nothing that an older checkpoint does not say', function()
    local stored = tablex.copy(options.parse {})
    stored.clip = nil
    resuming.check(options.parse { '--clip', '3' }, data, { opts = stored }, 'x')
  end)

  it('is refused in one sentence by the recipe', function()
    local root = run.workplace()
    finally(function() run.remove(root) end)
    run.trained(root, 'first', { steps = 2 })
    local code, _, errors = run.translate(root, 'first', { steps = 4, batch = 500, resume = true })
    assert.equal(1, code)
    assert.matches('^lumoe: %-%-resume: %S+/first/checkpoint%-2 was trained with %-%-batch 400, and now it is 500; [^\n]*\n$', errors)
    assert.equal(2, #run.records(root, 'first'))
    -- More of the same text: the tokenizer may be the same, the batches are not.
    os.execute(("cd %s && tail -n 30 text/es.tsv | sed 's/^/Lo! /' >> text/es.tsv"):format(root))
    code, _, errors = run.translate(root, 'first', { steps = 4, resume = true })
    assert.equal(1, code)
    assert.truthy(errors:find('another tokenizer', 1, true) or errors:find('trained on other data: the es texts', 1, true), errors)
  end)
end)
