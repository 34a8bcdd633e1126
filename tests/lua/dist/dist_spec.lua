local program = os.getenv 'LUMOE' or 'build/bin/lumoe'
local lumoe = require 'lumoe'
local dist = lumoe.dist

describe('dist', function()
  it('works on two ranks', function()
    local launcher = 'LUMOE_DEBUG=collectives mpirun -np 2 --oversubscribe --allow-run-as-root'
    local pipe = io.popen(('%s %s tests/lua/dist/collectives.lua 2>&1'):format(launcher, program))
    assert.equal('all well\n', pipe:read '*a')
    pipe:close()
  end)

  it('is free in a world of one', function()
    assert.equal(0, dist.rank())
    assert.equal(1, dist.world_size())
    assert.is_false(dist.launched())
    assert.equal(7, dist.all_reduce(lumoe.full({ 1 }, 7)):item())
    assert.equal(2.5, dist.reduce_number(2.5))
    local mesh = dist.mesh()
    assert.same({ 1, 1, 1 }, { mesh.dp, mesh.ep, mesh.edp })
    assert.error_matches(function() dist.agree 'no good' end, 'no good')
    assert.error_matches(function() dist.all_reduce(lumoe.ones(1), 'product') end, "no operation 'product'")
  end)
end)
