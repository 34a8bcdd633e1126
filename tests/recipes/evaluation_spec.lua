local cjson = require 'cjson'
local dir = require 'pl.dir'
local metrics = require('lumoe').metrics
local path = require 'pl.path'
local run = require 'tests.recipes.run'
local utils = require 'pl.utils'

local function lines(file)
  local list = {}
  for line in io.lines(file) do list[#list + 1] = line end
  return list
end

local EVALUATED = { ['no-eval'] = false, steps = 100, beam = 2, ['test-sentences'] = 12, denoising = 0.2 }

describe('evaluation in the recipes', function()
  local root, output
  setup(function()
    root = run.workplace()
    local code, errors
    code, output, errors = run.translate(root, 'out', EVALUATED)
    assert(code == 0, errors)
  end)
  teardown(function() run.remove(root) end)

  local function file(name) return root .. '/out/' .. name end

  it('translates both directions and scores them', function()
    local scores = cjson.decode(utils.readfile(file 'scores.json'))
    for _, direction in ipairs { 'es-en', 'en-es' } do
      local hyps, refs = lines(file('test/' .. direction .. '.hyp')), lines(file('test/' .. direction .. '.ref'))
      assert.equal(12, #hyps)
      assert.equal(12, #refs)
      local row = scores[direction]
      for _, field in ipairs { 'bleu', 'chrf', 'bleu_novel', 'bleu_novel_48', 'tm', 'sentences', 'novel' } do
        assert.is_number(row[field], direction .. ' ' .. field)
      end
      assert.matches('tok:13a', row.signature)
      local again = metrics.evaluate { direction = direction, hyps = hyps, refs = refs }
      assert.near(again.bleu, row.bleu, 1e-3)
      assert.near(again.chrf, row.chrf, 1e-3)
      assert.equal(12, row.sentences)
      assert.truthy(output:find(direction, 1, true))
    end
  end)

  it('leaves out a direction without a test sentence, and says so', function()
    local data = root .. '/untested-data'
    assert(os.execute(('cp -r %s/data %s && : > %s/test.es.tsv'):format(root, data, data)) == 0)
    local code, said, errors = run.translate(root, 'untested', { ['no-eval'] = false, steps = 1, ['data-dir'] = data })
    assert.equal(0, code, errors)
    assert.matches('no test sentences for es%-en; with %-%-data, a file test%.es%.tsv gives some', errors)
    assert.equal('', said)
    assert.is_nil(path.exists(root .. '/untested/scores.json') or nil)
  end)

  it('takes test sentences from where no training sentence is', function()
    local training = {}
    for _, line in ipairs(lines(root .. '/data/train.es.tsv')) do training[line:match '^[^\t]*'] = true end
    local refs = lines(file 'test/es-en.ref')
    for _, ref in ipairs(refs) do assert.is_nil(training[ref]) end
  end)

  it('shows ten translations, no one twice, and who used the experts', function()
    local shown, count = {}, 0
    for direction, source in output:gmatch '\n(%l%l%-%l%l)  ([^\n]+)\n   → [^\n]*\n   = ' do
      assert.is_nil(shown[direction .. source])
      shown[direction .. source], count = true, count + 1
    end
    assert.equal(10, count)
    for _, layer in ipairs { 'encoder.2.feed_forward', 'decoder.2.feed_forward' } do
      assert.truthy(output:find(layer .. ': share of each language', 1, true))
    end
  end)

  it('leaves a report that needs nothing else', function()
    local html = utils.readfile(file 'report.html')
    assert.matches('^<!DOCTYPE html>', html)
    for _, want in ipairs { '<svg', '>Loss<', '>Learning rate<', 'es%-en', 'en%-es', 'encoder%.2%.feed_forward' } do
      assert.matches(want, html)
    end
    assert.is_nil(html:find '<script[^>]+src')
    assert.is_nil(html:find '<link[^>]+href')
    assert.is_nil(html:find '<img[^>]+src="[^d]') -- data: alone
    assert.is_nil(html:find '@import')
  end)

  it('leaves events for TensorBoard', function()
    local events = dir.getfiles(file 'tensorboard')
    assert.equal(1, #events)
    local bytes = utils.readfile(events[1], true)
    for _, name in ipairs { 'loss', 'lr', 'grad_norm', 'dropped' } do assert.truthy(bytes:find(name, 1, true), name) end
    assert.is_true(#bytes > 100 * 50)
  end)

  it('evaluate.lua says the same of the checkpoint', function()
    local out = root .. '/again'
    local code, again, errors = run.shell(run.command('recipes/evaluate.lua',
      ('%s --beam 2 --test-sentences 12 --out %s'):format(root .. '/out/checkpoint-100', out)))
    assert.equal(0, code, errors)
    for _, direction in ipairs { 'es-en', 'en-es' } do
      assert.same(lines(file('test/' .. direction .. '.hyp')), lines(out .. '/test/' .. direction .. '.hyp'))
    end
    assert.equal(utils.readfile(file 'scores.json'), utils.readfile(out .. '/scores.json'))
    assert.truthy(again:find('BLEU', 1, true))
    local html = utils.readfile(out .. '/report.html')
    for _, title in ipairs { '>Loss<', '>Learning rate<' } do assert.matches(title, html) end -- the training's records
  end)

  it('evaluate.lua says the same on two ranks, the experts over both, without the user\'s text', function()
    assert.equal(0, (run.translate(root, 'spread', { steps = 100, ep = 2 }, { ranks = 2 })))
    os.rename(root .. '/text', root .. '/moved')
    local out = root .. '/ranks'
    local arguments = ('%s --beam 2 --test-sentences 12 --out %s'):format(root .. '/spread', out)
    local code, _, errors = run.shell(run.command('recipes/evaluate.lua', arguments, { ranks = 2 }))
    assert.equal(0, code, errors)
    local single = root .. '/single'
    code, _, errors = run.shell(run.command('recipes/evaluate.lua', (arguments:gsub('%S+$', single))))
    os.rename(root .. '/moved', root .. '/text')
    assert.equal(0, code, errors)
    for _, direction in ipairs { 'es-en', 'en-es' } do
      assert.same(lines(single .. '/test/' .. direction .. '.hyp'), lines(out .. '/test/' .. direction .. '.hyp'))
    end
    assert.equal(utils.readfile(single .. '/scores.json'), utils.readfile(out .. '/scores.json'))
  end)

  it('interactive.lua translates what is typed, as evaluation did', function()
    local sources = lines(file 'test/en-es.ref')
    local code, typed, errors = run.shell(run.command('recipes/interactive.lua', root .. '/out --beam 2'),
      sources[1] .. '\n\n:from en\n:to es\n:to xx\n' .. lines(file 'test/es-en.ref')[1] .. '\n')
    assert.equal(0, code, errors)
    assert.equal(lines(file 'test/es-en.hyp')[1] .. '\n' .. lines(file 'test/en-es.hyp')[1] .. '\n', typed)
    assert.truthy(errors:find("no language 'xx'; there are: en es", 1, true))
    local _
    code, _, errors = run.shell(run.command('recipes/interactive.lua', root .. '/out --from fr'))
    assert.equal(1, code)
    assert.truthy(errors:find("no language 'fr'", 1, true))
  end)

  it('--compare-dense trains the dense twin on the same tokens and reports both', function()
    local options = { ['no-eval'] = false, ['compare-dense'] = true, steps = 10, beam = 1, ['test-sentences'] = 3,
      directions = 'into' }
    local code, said, errors, _ = run.translate(root, 'twins', options)
    assert.equal(0, code, errors)
    local own, dense = run.records(root, 'twins'), run.records(root, 'twins/dense')
    run.same(own, dense, 0, { 'tokens', 'lr' })
    assert.is_nil(next(dense[10].layers))
    for _, name in ipairs { 'scores.json', 'report.html', 'test/es-en.hyp' } do
      assert.is_true(path.isfile(root .. '/twins/' .. name))
      assert.is_true(path.isfile(root .. '/twins/dense/' .. name))
    end
    assert.truthy(errors:find('the dense twin, 10 steps', 1, true))
    -- Both together: scores side by side, what they took, both curves.
    local heading = said:match '\n(direction[^\n]*dense[^\n]*)'
    assert.equal(4, select(2, heading:gsub('dense', '')))
    local scores = {}
    for i, name in ipairs { 'twins', 'twins/dense' } do
      scores[i] = cjson.decode(utils.readfile(('%s/%s/scores.json'):format(root, name)))['es-en']
    end
    local joint = { said:match(heading:gsub('%p', '%%%0') .. '\n[─]+\nes%-en' .. ('%s+([%d.]+)'):rep(8)) }
    for i, field in ipairs { 'bleu', 'chrf', 'bleu_novel', 'bleu_novel_48' } do
      for twin = 1, 2 do assert.near(scores[twin][field], tonumber(joint[2 * i - 2 + twin]), 0.0051) end
    end
    local all, active = said:match '\nMoE%s+([%d.]+) M%s+([%d.]+) M%s+10%s+[%d.]+ M%s+[%d.]+%s+%d+\n'
    local dense_all, dense_active = said:match '\ndense%s+([%d.]+) M%s+([%d.]+) M%s+10%s'
    assert.is_true(tonumber(active) < tonumber(all))
    assert.equal(dense_all, dense_active)
    local html = utils.readfile(root .. '/twins/report.html')
    for _, want in ipairs { '>MoE<', '>dense<', '>novel ≤48<', 'encoder%.2%.feed_forward' } do assert.matches(want, html) end
    options.resume = true
    code, _, errors = run.translate(root, 'twins', options)
    assert.equal(0, code, errors)
    assert.equal(10, #run.records(root, 'twins/dense'))
  end)
end)
