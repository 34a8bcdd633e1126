--- ZeRO: every stage, of experts and of all else, against one process.
-- slow: jobs of up to four ranks on few cores
local results = require 'tests.lua.dist.results'
local compare, run = results.compare, results.run

-- What one process gives with a plain model.
local function alone(commons)
  local layouts, by_name = {}, {}
  for i, common in ipairs(commons) do layouts[i] = common .. ' sharded=no' end
  for i, result in ipairs(results.of(1, layouts)) do by_name[commons[i]] = result end
  return by_name
end

-- On so many ranks: what the baseline has too, and the layout.
local CASES = {
  [2] = {
    { 'micro=1', 'dense=0 expert=0' },
    { 'micro=1', 'dense=1 expert=1 clip=gradients' },
    { 'micro=2', 'dense=2 expert=2' },
    { 'micro=2', 'dense=3 expert=3' },
    { 'micro=1 deal=one', 'dense=3 expert=3' }, -- one token in all places: experts without any
    { 'micro=2 recompute=yes', 'dense=3 expert=3' },
    { 'micro=2 recompute=yes', 'dense=1 expert=2' },
    { 'micro=2', 'dense=0 expert=0 fail=yes' }, -- an error in the middle of backward, and on
    { 'micro=2', 'dense=1 expert=2 fail=yes' },
    { 'micro=2', 'dense=3 expert=3 fail=yes' },
  },
  [3] = { -- nothing divides by 3; a rank without tokens
    { 'micro=2', 'dense=0 expert=0 deal=uneven' },
    { 'micro=2', 'dense=1 expert=3 deal=uneven' },
    { 'micro=1', 'dense=3 expert=2 deal=uneven' },
    { 'micro=2 optimizer=SGD', 'dense=3 expert=2' },
  },
  [4] = {
    { 'micro=1', 'dense=0 expert=3 ep=2' },
    { 'micro=2', 'dense=3 expert=0 ep=2' },
    { 'micro=2', 'dense=3 expert=3 ep=2 deal=uneven' },
    { 'micro=1', 'dense=2 expert=1 ep=2 last=no' },
    { 'micro=1', 'dense=2 expert=3 ep=4 clip=gradients' },
    { 'micro=1 experts=1', 'dense=1 expert=3 ep=2' }, -- two ranks have no expert to divide
    { 'micro=1 experts=1', 'dense=3 expert=2 ep=2' },
  },
}

describe('ZeRO', function()
  local want
  setup(function()
    want = alone { 'micro=1', 'micro=2', 'micro=1 deal=one', 'micro=1 experts=1', 'micro=2 recompute=yes', 'micro=2 optimizer=SGD' }
  end)

  for ranks, cases in pairs(CASES) do
    it(('trains as one process does, on %d ranks'):format(ranks), function()
      local layouts = {}
      for i, case in ipairs(cases) do layouts[i] = table.concat(case, ' ') end
      for i, got in ipairs(results.of(ranks, layouts)) do
        local ok, message = pcall(compare, want[cases[i][1]], got, 1e-6)
        assert.is_true(ok, layouts[i] .. ': ' .. tostring(message))
        assert.is_true(message > (layouts[i]:find 'experts=1' and 900 or 1500), layouts[i])
      end
    end)
  end

  it('keeps f32 masters of bf16 chunks', function()
    local all = results.of(4, { 'dtype=bf16 ep=2', 'dtype=bf16 ep=2 dense=1 expert=1', 'dtype=bf16 ep=2 dense=3 expert=2',
      'dtype=bf16 ep=2 dense=2 expert=3' })
    for i = 2, 4 do compare(all[1], all[i], 1e-6) end
  end)

  it('takes the memory that the books say, and no more on the way', function()
    local launcher = 'LUMOE_DEBUG=collectives mpirun -np 2 --oversubscribe --allow-run-as-root'
    local pipe = assert(io.popen(('%s %s tests/lua/dist/zero_memory.lua 2>&1')
      :format(launcher, os.getenv 'LUMOE' or 'build/bin/lumoe')))
    assert.equal('all well\n', pipe:read '*a')
    pipe:close()
  end)

  it('ends the job with the message of a rank that raises while the others gather', function()
    for _, layout in ipairs { 'dense=3 expert=3', 'dense=0 expert=2' } do
      local begun = os.time()
      local output = run(3, os.tmpname(), 'fail=alone ' .. layout)
      assert.matches('%[rank 2%] a slip', output)
      assert.not_matches('exit 0', output)
      assert.is_true(os.time() - begun < 30) -- mpirun's start and end are in this too
    end
  end)

  it('says what cannot be', function()
    assert.matches("optim.Adafactor: means of rows and columns need whole matrices, but 'embedding.weight' is divided between 2 ranks",
      run(2, os.tmpname(), 'optimizer=Adafactor dense=1'))
    assert.matches("optim.AdamW: the mesh of 'embedding.weight' asks for ZeRO stage 1: call dist.shard%(model%) first",
      run(2, os.tmpname(), 'sharded=no dense=1'))
  end)
end)
