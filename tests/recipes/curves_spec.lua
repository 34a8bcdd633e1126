local path = require 'pl.path'
local run = require 'tests.recipes.run'
local utils = require 'pl.utils'

describe('recipes/curves.lua', function()
  local root
  setup(function()
    root = path.tmpname()
    os.remove(root)
    assert(path.mkdir(root))
    local lines = {}
    for step = 1, 9 do lines[step] = ('{"step":%d,"loss":%g,"tokens":%d,"seconds":%d}\n'):format(step, 9 / step, step * 1e6, step) end
    utils.writefile(root .. '/metrics.jsonl', table.concat(lines))
  end)
  teardown(function() run.remove(root) end)

  local function curves(arguments) return run.shell(run.command('recipes/curves.lua', arguments)) end

  it('draws in the terminal, and into a file', function()
    local code, picture = curves(('mine=%s twin=%s --over tokens'):format(root, root))
    assert.equal(0, code)
    for _, want in ipairs { 'Loss', 'mine', 'twin', 'million tokens' } do assert.truthy(picture:find(want, 1, true), want) end
    assert.equal(0, (curves(('%s --out %s/loss.svg'):format(root, root))))
    assert.matches('<svg', utils.readfile(root .. '/loss.svg'))
  end)

  it('says in a sentence what it lacks', function()
    for arguments, want in pairs {
      ['/nonexistent'] = '/nonexistent/metrics.jsonl: is not there; a run writes it in its --out folder',
      [root .. ' --what lr'] = "--what lr: no such number in the runs' records",
      [root .. ' --out x.pdf'] = "'x.pdf' does not end in .svg, .png or .txt",
    } do
      local code, _, errors = curves(arguments)
      assert.equal(1, code)
      assert.equal('lumoe: ' .. want .. '\n', errors)
    end
  end)
end)
