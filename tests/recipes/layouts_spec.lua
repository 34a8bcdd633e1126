local cjson = require 'cjson'
local run = require 'tests.recipes.run'

local function steps(ranks, ...)
  local arguments = table.concat({ ... }, ' ')
  local code, output, errors = run.shell(run.command('tests/recipes/layout_steps.lua', arguments, { ranks = ranks }))
  assert(code == 0, errors)
  return cjson.decode(output)
end

describe('the recipe under a layout', function()
  local alone
  setup(function() alone = steps(1, 1, 1, 1) end)

  for _, layout in ipairs { { 2, 1, 1, 2 }, { 2, 1, 2, 1 }, { 4, 2, 2, 2 }, { 4, 4, 1, 4 }, { 3, 1, 3, 1 } } do
    it(('has the losses and norms of one process: %d ranks, ep %d, etp %d, tp %d'):format(unpack(layout)), function()
      local got = steps(unpack(layout))
      run.same(alone.records, got.records, 1e-5, { 'loss', 'grad_norm' })
      assert.same({ alone.all, alone.active }, { got.all, got.active })
    end)
  end

  it('learns in these steps', function()
    assert.is_true(alone.records[8].loss < alone.records[1].loss - 0.1)
  end)
end)
