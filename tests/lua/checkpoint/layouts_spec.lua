-- slow: a training run for each layout, and one for each pair of layouts
local folder = require 'tests.lua.checkpoint.folder'
local path_of = require 'pl.path'
local source = require 'lumoe.checkpoint.source'

-- ranks, and the layout as layouts.lua takes it
local LAYOUTS = {
  one = { 1, '-' }, away = { 1, 'offload=optimizer' }, dp = { 2, '-' }, ep = { 2, 'ep=2' }, tp = { 2, 'tp=2' },
  three = { 3, 'ep=3' }, etp = { 2, 'etp=2' }, four = { 4, 'ep=4' }, mixed = { 4, 'tp=2,ep=2' },
  all = { 4, 'tp=2,ep=2,etp=2' }, cut = { 4, 'tp=4,etp=4' }, tp_away = { 4, 'tp=2,ep=2,offload=optimizer' },
  zero1 = { 2, 'ep=2,zero=1/1' }, zero2 = { 3, 'zero=2/2' }, zero3 = { 4, 'tp=2,ep=2,zero=3/3' }, zeros = { 4, 'ep=2,zero=3/1' },
  zero_away = { 4, 'ep=2,zero=2/2,offload=optimizer' }, gone = { 2, 'ep=2,offload=parameters' },
  gone3 = { 4, 'tp=2,etp=2,zero=3/3,offload=parameters' }, half3 = { 3, 'zero=3/3,precision=bf16' },
  half_gone = { 2, 'offload=parameters,precision=bf16' },
  half = { 2, 'ep=2,precision=bf16' }, half_tp = { 4, 'tp=2,etp=2,precision=bf16' },
  half_moments = { 2, 'ep=2,zero=1/1,precision=bf16,moments=bf16' },
  half_moments_tp = { 4, 'tp=2,etp=2,offload=optimizer,precision=bf16,moments=bf16' },
}

-- Saved under the first, loaded under the second.
local PAIRS = {
  { 'one', 'ep' }, { 'one', 'all' }, { 'ep', 'one' }, { 'tp', 'one' }, { 'dp', 'cut' }, { 'cut', 'three' }, { 'three', 'mixed' },
  { 'mixed', 'etp' }, { 'all', 'four' }, { 'four', 'tp' }, { 'one', 'away' }, { 'away', 'mixed' }, { 'tp_away', 'three' },
  { 'one', 'zero3' }, { 'zero1', 'dp' }, { 'zero2', 'zero1' }, { 'zero3', 'zero2' }, { 'zeros', 'all' }, { 'zero_away', 'three' },
  { 'zero2', 'zero_away' }, { 'gone', 'zero3' }, { 'gone3', 'gone' }, { 'all', 'gone3' }, { 'half', 'half3' },
  { 'half3', 'half_tp' }, { 'half_tp', 'half_gone' }, { 'half_gone', 'half' },
  { 'half_moments', 'half_moments_tp' }, { 'half_moments_tp', 'half_moments' },
}

local SAVED, LAST = 3, 13

-- Runs layouts.lua; returns its losses and norms.
local function train(layout, from, steps, save)
  local out = path_of.tmpname()
  local launcher = layout[1] > 1 and ('LUMOE_DEBUG=collectives mpirun -np %d --oversubscribe --allow-run-as-root'):format(layout[1]) or ''
  local output = folder.lumoe(('tests/lua/checkpoint/layouts.lua %s %s %s %s %s'):format(layout[2], from, steps, save, out),
    'OMP_NUM_THREADS=1 ' .. launcher)
  assert.equal('exit 0\n', output)
  local lines = {}
  for line in io.lines(out) do
    for word in line:gmatch '%S+' do lines[#lines + 1] = tonumber(word) end
  end
  os.remove(out)
  return lines
end

-- Every tensor of two checkpoints, to the last bit.
local function same_checkpoint(a, b)
  local one, other, count = source.open(a), source.open(b), 0
  for name in pairs(one.tensors) do
    assert.is_truthy(other.tensors[name], name)
    local x, y = one:tensor(name), other:tensor(name)
    assert.equal(x.dtype, y.dtype, name)
    assert.equal(0, x:numel() > 0 and (x:float() - y:float()):abs():max():item() or 0, name)
    count = count + 1
  end
  for name in pairs(other.tensors) do assert.is_truthy(one.tensors[name], name) end
  assert.is_true(count > 60)
  one:close()
  other:close()
end

describe('training goes on', function()
  local root = path_of.tmpname()
  local saved = {} -- layout -> { path, losses and norms of the steps after it }
  os.remove(root)
  teardown(function() require('pl.dir').rmtree(root) end)

  local function unbroken(name)
    if not saved[name] then
      local dir = root .. '/' .. name
      train(LAYOUTS[name], '-', '1-' .. SAVED, dir)
      local lines = train(LAYOUTS[name], '-', '1-' .. LAST, '-')
      saved[name] = { path = dir .. '/checkpoint-' .. SAVED, rest = { unpack(lines, 2 * SAVED + 1) } }
    end
    return saved[name]
  end

  for _, pair in ipairs(PAIRS) do
    local from, to = LAYOUTS[pair[1]], LAYOUTS[pair[2]]
    it(('on %d ranks, %s, from %d, %s'):format(to[1], to[2], from[1], from[2]), function()
      local before, dir = unbroken(pair[1]), root .. '/again'
      local rest = train(to, before.path, (SAVED + 1) .. '-' .. LAST, dir)
      same_checkpoint(before.path, dir .. '/checkpoint-' .. SAVED)
      require('pl.dir').rmtree(dir)
      assert.equal(2 * (LAST - SAVED), #rest)
      local allowed = pair[1]:find 'half' and 2e-2 or 1e-5
      for i, value in ipairs(before.rest) do assert.near(value, rest[i], allowed * math.abs(value)) end
    end)
  end
end)
