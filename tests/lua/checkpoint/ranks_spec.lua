-- slow: starts mpirun a dozen times
local checkpoint = require 'lumoe.checkpoint'
local folder = require 'tests.lua.checkpoint.folder'
local json = require 'lumoe.checkpoint.json'

local function mpirun(n, act, dir, ep, owners)
  local output = folder.lumoe(('tests/lua/checkpoint/ranks.lua %s %s %d %s'):format(act, dir, ep, owners or ''),
    ('LUMOE_DEBUG=collectives OMP_NUM_THREADS=1 mpirun -np %d --oversubscribe --allow-run-as-root'):format(n))
  assert.equal('all well\nexit 0\n', output)
end

-- { ranks, ep, owners }
local LAYOUTS = { { 1, 1 }, { 2, 2 }, { 2, 1 }, { 4, 2 }, { 3, 3, '2,0,0,1,2,0' }, { 4, 4, '3,3,3,3,1,1' } }
local function name(l) return ('%d ranks, ep %d%s'):format(l[1], l[2], l[3] and ', experts at ' .. l[3] or '') end

describe('a checkpoint of', function()
  for i, saved in ipairs(LAYOUTS) do
    local loaded = { saved, LAYOUTS[i % #LAYOUTS + 1], LAYOUTS[(i + 2) % #LAYOUTS + 1] }
    it(('%s loads on %s; %s; %s'):format(name(saved), name(loaded[1]), name(loaded[2]), name(loaded[3])), function()
      folder.with(function(dir)
        mpirun(saved[1], 'save', dir, saved[2], saved[3])
        for _, l in ipairs(loaded) do mpirun(l[1], 'load', dir, l[2], l[3]) end
      end)
    end)
  end

  it('two ranks is read whole by one process; each rank wrote the experts that it holds', function()
    folder.with(function(dir)
      mpirun(2, 'save', dir, 2)
      local whole = checkpoint.read(dir .. '/checkpoint-3')
      assert.same({ 6, 5, 8 }, whole['layer.experts.up'].shape)
      local first = checkpoint.read(dir .. '/checkpoint-3/model-00001-of-00002.safetensors')
      local second = checkpoint.read(dir .. '/checkpoint-3/model-00002-of-00002.safetensors')
      assert.same({ 3, 5, 8 }, first['layer.experts.up[0:3]'].shape)
      assert.same(whole['layer.experts.up'][{ { 3, 6 } }]:totable(), second['layer.experts.up[3:6]']:totable())
      assert.is_truthy(first['input.weight'])
      assert.is_nil(second['input.weight'])
    end)
  end)

  it('version 1, which knew rows alone, is read as before', function()
    folder.with(function(dir)
      mpirun(2, 'save', dir, 2)
      local path = dir .. '/checkpoint-3/index.json'
      local whole = checkpoint.read(dir .. '/checkpoint-3')
      local index = json.decode(folder.read(path))
      index.version = 1
      for _, group in ipairs { index.parameters, index.optimizer.tensors } do
        for _, t in pairs(group) do
          for _, piece in ipairs(t.pieces) do
            if piece.ranges then piece.first, piece.rows = unpack(piece.ranges[1][1])
            elseif #t.shape > 1 then piece.first, piece.rows = 0, t.shape[1] end
            piece.ranges = nil
          end
        end
      end
      folder.write(path, json.encode(index))
      local old = checkpoint.read(dir .. '/checkpoint-3')
      for key, t in pairs(whole) do assert.same(t:totable(), old[key]:totable()) end
      mpirun(3, 'load', dir, 3)
    end)
  end)
end)

describe('a failure on one rank', function()
  it('to write is one of all, and leaves the checkpoint before it', function()
    folder.with(function(dir) mpirun(2, 'fail', dir, 2) end)
  end)

  it('whose file the system cuts off is one of all too', function()
    folder.with(function(dir) mpirun(2, 'full', dir, 2) end)
  end)

  it('to read is one of all, and leaves the models as they were', function()
    folder.with(function(dir)
      mpirun(2, 'save', dir, 2)
      local path = dir .. '/checkpoint-3/model-00002-of-00002.safetensors'
      folder.write(path, folder.read(path):sub(1, -2))
      mpirun(2, 'damaged', dir, 2)
    end)
  end)
end)
