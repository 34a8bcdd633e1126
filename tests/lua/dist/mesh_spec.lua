local program = os.getenv 'LUMOE' or 'build/bin/lumoe'
local lumoe = require 'lumoe'
local dist, nn, optim = lumoe.dist, lumoe.nn, lumoe.optim

describe('dist.mesh', function()
  it('is one rank in a world of one', function()
    local mesh = dist.mesh()
    assert.same({ 1, 1, 1, 1, 1 }, { mesh.dp, mesh.tp, mesh.ep, mesh.etp, mesh.edp })
    assert.same({ dense = 0, expert = 0 }, mesh.zero)
    assert.equal(mesh, dist.mesh { tp = 1, zero = {} })
    assert.equal('dp 1 × tp 1, experts edp 1 × ep 1 × etp 1', tostring(mesh))
    assert.equal('dp 1 × tp 1, experts edp 1 × ep 1 × etp 1, ZeRO dense 2 expert 0, offload parameters',
      tostring(dist.mesh { zero = { dense = 2 }, offload = 'parameters' }))
    local away = dist.mesh { offload = { to = 'optimizer', dir = '/scratch' } }
    assert.same({ 'optimizer', '/scratch' }, { away.offload, away.tier.dir })
    assert.are_not.equal(away, dist.mesh { offload = 'optimizer' })
  end)

  it('names the numbers of what cannot be', function()
    local function fails(opts, pattern) assert.error_matches(function() dist.mesh(opts) end, '^mesh: ' .. pattern) end
    fails(4, 'wants a table of options, as { ep = 2 }, not 4')
    fails({ tp = 3 }, 'tp = 3 does not divide the 1 rank of the job')
    fails({ ep = 2 }, 'ep = 2 does not divide the 1 rank of the job')
    fails({ ep = 2, etp = 2 }, 'ep · etp = 2 · 2 = 4 does not divide the 1 rank of the job')
    fails({ tp = 1.5 }, 'tp must be a whole number from 1, not 1.5')
    fails({ ep = '2' }, "ep must be a whole number from 1, not '2'") -- as a command line has it
    fails({ ep = 0 }, 'ep must be a whole number from 1, not 0')
    fails({ pp = 2 }, "unknown option 'pp'; there are ep, etp, offload, ranks, tp, zero")
    fails({ zero = 2 }, 'zero must be a table { dense = stage, expert = stage }, not 2')
    fails({ zero = { experts = 1 } }, "unknown option 'zero.experts'; there are dense, expert")
    fails({ zero = { dense = 4 } }, 'zero.dense must be a whole number from 0 to 3, not 4')
    fails({ ranks = {} }, 'ranks must be a list of ranks')
    fails({ offload = 'cpu' }, "offload must be 'optimizer' or 'parameters', not cpu")
    fails({ offload = {} }, "offload must be 'optimizer' or 'parameters', not nil")
    fails({ offload = { to = 'optimizer', path = '/' } }, "unknown option 'offload.path'; there are bucket, dir, mapped, to")
    fails({ offload = { to = 'optimizer', mapped = 1 } }, 'offload.mapped must be true or false, not 1')
    fails({ offload = { to = 'optimizer', bucket = 0 } }, 'offload.bucket must be a whole number from 1, not 0')
  end)

  it('that moves parameters out of memory wants the model sharded first', function()
    local Part = nn.class 'Part'
    function Part:init(mesh) nn.parameter(self, 'weight', { 2 }, { mesh = mesh }) end
    assert.error_matches(function() optim.SGD(Part(dist.mesh { offload = 'parameters' }):named_parameters()) end,
      "optim.SGD: the mesh of 'weight' asks for offloaded parameters: call dist.shard%(model%) first")
  end)

  it('is the same for every parameter of a model, but for its experts', function()
    local Part, zero = nn.class 'Part', dist.mesh { zero = { dense = 1 } }
    function Part:init(mesh) nn.parameter(self, 'weight', { 2 }, { mesh = mesh }) end
    local Model = nn.class 'Model'
    function Model:init(...) self.parts = { Part(...), Part(), Part(select(2, ...)) } end
    for _, p in ipairs(Model(zero):named_parameters()) do assert.equal(zero, p.mesh) end
    assert.error_matches(function() Model(zero, dist.mesh {}):named_parameters() end,
      "parameters 'parts.1.weight' and 'parts.3.weight' are of one model, but lie on meshes that differ: dp 1")
  end)

  it('gives every rank its groups, and each element of a gradient one holder that counts it', function()
    local launcher = 'LUMOE_DEBUG=collectives mpirun -np 6 --oversubscribe --allow-run-as-root'
    local pipe = io.popen(('%s %s tests/lua/dist/mesh.lua 2>&1'):format(launcher, program))
    assert.equal('all well\n', pipe:read '*a')
    pipe:close()
  end)
end)
