local cjson = require 'cjson'
local run = require 'tests.recipes.run'

local function translations(ranks, ...)
  local code, output, errors = run.shell(run.command('tests/recipes/translations.lua', table.concat({ ... }, ' '), { ranks = ranks }))
  assert(code == 0, errors)
  return cjson.decode(output)
end

describe('translation', function()
  -- 4 batches of one request and 2 of the other: on 4 ranks the last round leaves two of them without any.
  for _, layout in ipairs { { 2, 4, 1 }, { 2, 4, 2 }, { 4, 4, 4 }, { 4, 4, 2 }, { 4, 1, 1 },
    { 2, 1, 1, 1, 2 }, { 2, 4, 1, 2, 1 }, { 4, 4, 2, 2, 2 } } do
    local ranks, experts, ep, etp, tp = unpack(layout)
    it(('is the same on %d ranks (%d experts, over %d, etp %d, tp %d)'):format(ranks, experts, ep, etp or 1, tp or 1), function()
      local alone, spread = translations(1, experts, 1), translations(ranks, experts, ep, etp or 1, tp or 1)
      assert.same(alone, spread)
      assert.same({ 3, 3, 3, 2, 3, 1 }, spread.steps)
      assert.equal(11, #spread.got[1])
      assert.equal(4, #spread.got[2])
      local kinds, count = {}, 0
      for _, text in ipairs(spread.got[1]) do
        if not kinds[text] then kinds[text], count = true, count + 1 end
      end
      assert.is_true(count > 3) -- or sameness would prove little
      assert.equal(experts > 1 and 2 or 0, #spread.used)
    end)
  end
end)
