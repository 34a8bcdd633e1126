local program = os.getenv 'LUMOE' or 'build/bin/lumoe'
local lumoe = require 'lumoe'
local dist = lumoe.dist

describe('collectives that gradients flow through', function()
  it('are right forth and back on three ranks', function()
    local launcher = 'LUMOE_DEBUG=collectives mpirun -np 3 --oversubscribe --allow-run-as-root'
    local pipe = io.popen(('%s %s tests/lua/dist/parallel.lua 2>&1'):format(launcher, program))
    assert.equal('all well\n', pipe:read '*a')
    pipe:close()
  end)

  it('leave everything as it is for one', function()
    local x, world = lumoe.ones(2, 3), dist.world()
    for _, name in ipairs { 'copy_to', 'reduce_from', 'slice_rows', 'gather_rows' } do
      assert.equal(x:id(), dist[name](x, world, 2):id())
    end
    assert.is_nil(dist.cut(8, world, 'heads'))
  end)
end)
