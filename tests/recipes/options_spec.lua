local parse = require('recipes.translate.options').parse
local run = require 'tests.recipes.run'

describe('the command line of recipes/translate.lua', function()
  local function says(options, how)
    local code, _, errors = run.translate('/nonexistent', 'out', options, how)
    assert.is_true(code ~= 0)
    return errors
  end

  for want, options in pairs {
    ["unknown option '--bogus'"] = { bogus = 1 },
    ['--top-k 5: there are only 4 experts'] = { ['top-k'] = 5 },
    ['--dim 32 does not divide into --heads 3'] = { heads = 3 },
    ['--dim 30, --heads 2: a head must have an even width'] = { dim = 30 },
    ['--minutes and --steps: give one of them'] = { minutes = 1 },
    ['--ep 3 does not divide the 1 rank of this job'] = { ep = 3 },
    ['--ep 1 times --etp 2 does not divide the 1 rank of this job'] = { etp = 2 },
    ['--tp 2 does not divide the 1 rank of this job'] = { tp = 2 },
    ["'many' is no number"] = { steps = 'many' },
    ["'nan' is no number"] = { capacity = 'nan' },
    ["'1.5' is not a whole number"] = { experts = 1.5 },
    ["'-1' is not in 0 to"] = { capacity = -1 },
    ["'1' is not in 0 to 0.99"] = { dropout = 1 },
    ['languages: "d3" is no language code'] = { langs = 'd3' },
    ['languages: none given beside English'] = { langs = 'en' },
    ["must be one of 'auto', 'f32', 'bf16'"] = { precision = 'f16' },
    ["must be one of 'into', 'from', 'both'"] = { directions = 'out' },
    ['/nonexistent/text: no such directory'] = {},
  } do
    it('says: ' .. want, function()
      local errors = says(options)
      assert.truthy(errors:find(want, 1, true), errors)
      assert.is_nil(errors:find('traceback', 1, true))
    end)
  end

  it('says so on ranks, and ends them', function()
    local errors = says({ ep = 3 }, { ranks = 2 })
    local _, times = errors:gsub('%-%-ep 3 does not divide the 2 ranks of this job', '')
    assert.equal(1, times, errors)
    errors = says({ tp = 2, heads = 1 }, { ranks = 2 })
    assert.truthy(errors:find('--heads 1 do not divide among --tp 2 ranks', 1, true), errors)
  end)

  it('knows the lists of languages, and takes any', function()
    for text, want in pairs { ['4'] = 4, ['8'] = 8, ['50'] = 50, ['de,pt_BR,en,de'] = 2 } do
      assert.equal(want, #parse({ '--langs', text }).langs, text)
    end
    assert.same({ 'de', 'fr', 'es', 'it' }, parse({}).langs)
    assert.is_nil(parse({ '--data', 'DIR' }).langs)
  end)

  it('has help on every option', function()
    local code, output = run.shell(run.command('recipes/translate.lua', '--help'))
    assert.equal(0, code)
    assert.is_nil(output:find '%(([^()]+)%)%s+%(default: %1%)') -- said once
    for name in pairs(run.TINY) do assert.truthy(output:find('--' .. name, 1, true), name) end
    for _, name in ipairs { 'minutes', 'seed', 'resume', 'out', 'ep', 'etp', 'tp', 'data', 'compare-dense', 'beam', 'micro-batches' } do
      assert.truthy(output:find('--' .. name, 1, true), name)
    end
    for _, script in ipairs { 'evaluate', 'interactive', 'curves', 'prepare', 'check_layouts', 'estimate', 'exchange', 'max_model' } do
      code, output = run.shell(run.command(('recipes/%s.lua'):format(script), '--help'))
      assert.equal(0, code)
      assert.is_nil(output:find '%(([^()]+)%)%s+%(default: %1%)', script)
    end
  end)

  it('the other recipes name a place without a checkpoint', function()
    for _, script in ipairs { 'evaluate', 'interactive' } do
      local code, _, errors = run.shell(run.command(('recipes/%s.lua'):format(script), '/nonexistent'))
      assert.is_true(code ~= 0)
      assert.equal('lumoe: /nonexistent: no checkpoint there\n', errors)
    end
  end)

  describe('with text', function()
    local root
    setup(function() root = run.workplace() end)
    teardown(function() run.remove(root) end)

    for want, options in pairs {
      ['%-%-vocab 90000: Vocabulary size too high %(90000%)[^\n]*'] = { vocab = 90000 },
      ['%-%-resume: %S+ has no checkpoint'] = { resume = true },
      ['%-%-out /proc/none: cannot be made: [^\n]*'] = { out = '/proc/none' },
      ["mkdir: cannot create directory [^\n]*/proc/none[^\n]*"] = { ['data-dir'] = '/proc/none' },
    } do
      it('says in one sentence: ' .. want, function()
        local code, _, errors = run.translate(root, 'out', options)
        assert.equal(1, code)
        assert.matches('lumoe: ' .. want .. '\n$', errors)
        assert.is_nil(errors:find('traceback', 1, true))
      end)
    end

    it('leaves out a language of its own texts that has no sentence, unless it was asked for', function()
      local other = run.workplace()
      finally(function() run.remove(other) end)
      os.execute(('cd %s/text && : > fr.tsv && head -c 300 /dev/urandom > it.tsv'):format(other))
      local code, _, errors = run.translate(other, 'out', { steps = 1, langs = false })
      assert.equal(0, code, errors)
      assert.matches('/data: no sentences of fr, it; left out\n', errors)
      code, _, errors = run.translate(other, 'out2', { steps = 1, langs = 'es,fr' })
      assert.equal(1, code)
      assert.matches('lumoe: %S+/data: no sentences of fr\n$', errors)
    end)

    it('begins no second run in the folder of a first', function()
      run.trained(root, 'first', { steps = 2 })
      local code, _, errors = run.translate(root, 'first', { steps = 1 })
      assert.equal(1, code)
      assert.equal(('lumoe: --out %s/first: a run is there already (checkpoint-2); go on with it by --resume, or name another folder\n')
        :format(root), errors)
      assert.equal(2, #run.records(root, 'first')) -- and nothing is lost
    end)

    it('says on ranks what only the first has seen', function()
      local _, _, errors = run.translate(root, 'out', { vocab = 90000 }, { ranks = 2 })
      assert.matches('%[rank 0%] %-%-vocab 90000: Vocabulary size too high', errors)
      assert.is_nil(errors:find('[rank 1]', 1, true)) -- once is enough
      assert.is_nil(errors:find('traceback', 1, true))
    end)

    it('says which file of a checkpoint is damaged', function()
      assert.equal(0, (run.translate(root, 'damaged', { steps = 1 })))
      local file = root .. '/damaged/checkpoint-1/model-00001-of-00001.safetensors'
      local f = assert(io.open(file, 'a'))
      f:write 'x'
      f:close()
      local want = '^lumoe: ' .. file:gsub('%p', '%%%0') .. ': has 1 bytes behind its last tensor\n$'
      local _, _, errors = run.shell(run.command('recipes/evaluate.lua', root .. '/damaged'))
      assert.matches(want, errors)
      _, _, errors = run.translate(root, 'damaged', { steps = 2, resume = true })
      assert.matches(want, errors)
    end)

    it('shows where an error of the program itself is', function()
      local model = root .. '/data/spm-500.model'
      assert.equal(0, (run.translate(root, 'out', { steps = 0 })))
      os.remove(model)
      assert(require('lfs').mkdir(model)) -- no tokenizer, and none can be written there
      local _, _, errors = run.translate(root, 'out', { steps = 0 })
      assert.matches('corpus.lua:%d+: .*stack traceback:', errors)
    end)
  end)
end)
