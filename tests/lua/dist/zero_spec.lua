--- ZeRO: every stage, of experts and of all else, against one process.
-- slow: jobs of up to four ranks on few cores
local lumoe = os.getenv 'LUMOE' or 'build/bin/lumoe'

local function run(ranks, ...)
  local words = { ... }
  for i, word in ipairs(words) do words[i] = ("'%s'"):format(word) end
  local pipe = assert(io.popen(('mpirun -np %d --oversubscribe --allow-run-as-root %s tests/lua/dist/zero.lua %s 2>&1; echo "exit $?"')
    :format(ranks, lumoe, table.concat(words, ' '))))
  local output = pipe:read '*a'
  pipe:close()
  return output
end

-- { number = { ['loss 1'] = 1.23, .. }, tensor = { ['grad 1 embedding.weight'] = { [element] = value } }, bytes = { [rank] = .. } }
-- What several ranks say must be the same, to the last bit of text.
local function read(file, ranks)
  local all, text = { number = {}, tensor = {}, bytes = {} }, {}
  for rank = 0, ranks - 1 do
    all.bytes[rank] = {}
    for line in io.lines(file .. '.' .. rank) do
      local name, value = line:match '^(.-) = (.*)$'
      local what, at = name:match '^(%l+ ?%d* [%w_.]+) (%d+)$'
      if name:match '^bytes' then all.bytes[rank][name:match ' (.*)'] = tonumber(value)
      else
        if text[name] then assert.equal(text[name], value, name .. ' differs between ranks') end
        text[name] = value
        if what then
          all.tensor[what] = all.tensor[what] or {}
          all.tensor[what][tonumber(at)] = tonumber(value)
        else all.number[name] = tonumber(value) end
      end
    end
    os.remove(file .. '.' .. rank)
  end
  return all
end

-- What each layout gave, from one job for all of them: to start one takes longer than to train.
local function results(ranks, layouts)
  local file, list = os.tmpname(), {}
  assert.equal('exit 0\n', run(ranks, file, unpack(layouts)))
  for i in ipairs(layouts) do list[i] = read(('%s.%d'):format(file, i), ranks) end
  os.remove(file)
  return list
end

local function norms(want, got)
  local norm, off, count = 0, 0, 0
  for at, value in pairs(want) do
    assert.is_number(got[at], 'element ' .. at .. ' is missing')
    norm, off, count = norm + value ^ 2, off + (value - got[at]) ^ 2, count + 1
  end
  for at in pairs(got) do assert.is_number(want[at], 'element ' .. at .. ' is new') end
  return math.sqrt(norm), math.sqrt(off), count
end

-- ‖Δ‖ ≤ ε · max(‖that parameter‖, 1e-3 · ‖all‖), for gradients and for final parameters.
local function compare(want, got, epsilon)
  for name, value in pairs(want.number) do
    assert.near(value, got.number[name], epsilon * math.abs(value), name)
  end
  local total = {}
  for name, values in pairs(want.tensor) do
    local kind = name:match '^%l+'
    total[kind] = (total[kind] or 0) + norms(values, values) ^ 2
  end
  local compared = 0
  for name, values in pairs(want.tensor) do
    assert.is_table(got.tensor[name], name .. ' is missing')
    local norm, off, count = norms(values, got.tensor[name])
    assert.is_true(off <= epsilon * math.max(norm, 1e-3 * math.sqrt(total[name:match '^%l+'])),
      ('%s is off by %g of %g'):format(name, off, norm))
    compared = compared + count
  end
  return compared
end

-- What one process gives with a plain model.
local function alone(commons)
  local layouts, by_name = {}, {}
  for i, common in ipairs(commons) do layouts[i] = common .. ' sharded=no' end
  for i, result in ipairs(results(1, layouts)) do by_name[commons[i]] = result end
  return by_name
end

-- On so many ranks: what the baseline has too, and the layout.
local CASES = {
  [2] = {
    { 'micro=1', 'dense=0 expert=0' },
    { 'micro=1', 'dense=1 expert=1' },
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
    { 'micro=1', 'dense=2 expert=3 ep=4' },
  },
}

describe('ZeRO', function()
  local want
  setup(function()
    want = alone { 'micro=1', 'micro=2', 'micro=1 deal=one', 'micro=2 recompute=yes', 'micro=2 optimizer=SGD' }
  end)

  for ranks, cases in pairs(CASES) do
    it(('trains as one process does, on %d ranks'):format(ranks), function()
      local layouts = {}
      for i, case in ipairs(cases) do layouts[i] = table.concat(case, ' ') end
      for i, got in ipairs(results(ranks, layouts)) do
        local ok, message = pcall(compare, want[cases[i][1]], got, 1e-6)
        assert.is_true(ok, layouts[i] .. ': ' .. tostring(message))
        assert.is_true(message > 1500)
      end
    end)
  end

  it('keeps f32 masters of bf16 chunks', function()
    local all = results(4, { 'dtype=bf16 ep=2', 'dtype=bf16 ep=2 dense=1 expert=1', 'dtype=bf16 ep=2 dense=3 expert=2',
      'dtype=bf16 ep=2 dense=2 expert=3' })
    for i = 2, 4 do compare(all[1], all[i], 1e-6) end
  end)

  it('says what cannot be', function()
    assert.matches("optim.Adafactor: means of rows and columns need whole matrices, but 'embedding.weight' is divided between 2 ranks",
      run(2, os.tmpname(), 'optimizer=Adafactor dense=1'))
    assert.matches("optim.AdamW: the mesh of 'embedding.weight' asks for ZeRO stage 1: call dist.shard%(model%) first",
      run(2, os.tmpname(), 'sharded=no dense=1'))
  end)
end)
