--- ZeRO: every stage, of experts and of all else, against one process.
local lumoe = os.getenv 'LUMOE' or 'build/bin/lumoe'

local function run(ranks, ...)
  local command = ('mpirun -np %d --oversubscribe --allow-run-as-root %s tests/lua/dist/zero.lua %s 2>&1; echo "exit $?"')
    :format(ranks, lumoe, table.concat({ ... }, ' '))
  local pipe = assert(io.popen(command))
  local output = pipe:read '*a'
  pipe:close()
  return output
end

-- { number = { ['loss 1'] = 1.23, .. }, tensor = { ['grad 1 embedding.weight'] = { [element] = value } }, bytes = { [rank] = .. } }
-- What several ranks say must be the same, to the last bit of text.
local function results(ranks, options)
  local file = os.tmpname()
  assert.equal('exit 0\n', run(ranks, file, options))
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
  os.remove(file)
  return all
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

local alone = {}
local function baseline(options) -- a plain model in one process
  alone[options] = alone[options] or results(1, 'sharded=no ' .. options)
  return alone[options]
end

describe('ZeRO', function()
  -- ranks, what the baseline has too, layout
  for _, case in ipairs {
    { 2, 'micro=1', 'dense=0 expert=0' },
    { 2, 'micro=1', 'dense=1 expert=1' },
    { 2, 'micro=2', 'dense=2 expert=2' },
    { 2, 'micro=2', 'dense=3 expert=3' },
    { 3, 'micro=2', 'dense=0 expert=0 deal=uneven' },
    { 3, 'micro=2', 'dense=1 expert=3 deal=uneven' },
    { 3, 'micro=1', 'dense=3 expert=2 deal=uneven' },
    { 4, 'micro=1', 'dense=0 expert=3 ep=2' },
    { 4, 'micro=2', 'dense=3 expert=0 ep=2' },
    { 4, 'micro=2', 'dense=3 expert=3 ep=2 deal=uneven' },
    { 4, 'micro=1', 'dense=2 expert=1 ep=2 last=no' },
    { 4, 'micro=1', 'dense=2 expert=3 ep=4' },
    { 2, 'micro=1 deal=one', 'dense=3 expert=3' }, -- one token in all places: experts without any
    { 3, 'micro=2 optimizer=SGD', 'dense=3 expert=2' },
    { 2, 'micro=2 recompute=yes', 'dense=3 expert=3' },
    { 2, 'micro=2 recompute=yes', 'dense=1 expert=2' },
  } do
    it(('trains as one process does: %d ranks, %s, %s'):format(unpack(case)), function()
      local ranks, common, layout = unpack(case)
      assert.is_true(compare(baseline(common), results(ranks, common .. ' ' .. layout), 1e-6) > 1500)
    end)
  end

  for _, case in ipairs { { 2, 'dense=1 expert=1' }, { 3, 'dense=3 expert=2' }, { 4, 'dense=3 expert=3 ep=2' } } do
    it(('keeps f32 masters of bf16 chunks: %d ranks, %s'):format(unpack(case)), function()
      local ranks, layout = unpack(case)
      local want = results(ranks, 'dtype=bf16 steps=3 dense=0 expert=0' .. (layout:match ' ep=%d' or ''))
      compare(want, results(ranks, 'dtype=bf16 steps=3 ' .. layout), 1e-6)
    end)
  end

  for _, layout in ipairs { 'dense=0 expert=0', 'dense=1 expert=2', 'dense=3 expert=3' } do
    it('goes on after an error in the middle of backward: ' .. layout, function()
      compare(baseline 'micro=2', results(2, 'fail=yes micro=2 ' .. layout), 1e-6)
    end)
  end

  it('says what cannot be', function()
    assert.matches("optim.Adafactor: means of rows and columns need whole matrices, but 'embedding.weight' is divided between 2 ranks",
      run(2, os.tmpname(), 'optimizer=Adafactor dense=1'))
    assert.matches("optim.AdamW: the mesh of 'embedding.weight' asks for ZeRO stage 1: call dist.shard%(model%) first",
      run(2, os.tmpname(), 'sharded=no dense=1'))
  end)
end)
