local program = os.getenv 'LUMOE' or 'build/bin/lumoe'
local dist = require('lumoe').dist

local function run(hosts)
  local launcher = ('LUMOE_DEBUG=collectives LUMOE_HOSTS=%s mpirun -np 4 --oversubscribe --allow-run-as-root'):format(hosts)
  local pipe = io.popen(('%s %s tests/lua/dist/counters.lua 2>&1'):format(launcher, program))
  local output = pipe:read '*a'
  pipe:close()
  return output
end

describe('dist.counters', function()
  it('counts what a count by hand does, between ranks and between hosts', function()
    assert.equal('all well\n', run '1,3')
  end)

  it('wants hosts that add up', function()
    for _, hosts in ipairs { '2,3', '1,2', 'two' } do
      assert.matches('LUMOE_HOSTS: it gives each host.*add up to the 4 of the job', run(hosts))
    end
  end)

  it('is all zero in a world of one', function()
    local list = dist.counters { reset = true }
    assert.same({ { rank = 0, host = 0, bytes = 0, messages = 0, rows = 0 } }, list)
    assert.same({ { { bytes = 0, messages = 0, rows = 0 } } }, dist.between_hosts())
    assert.error_matches(function() dist.counters { clear = true } end, "counters: no option 'clear'; there are: reset")
  end)
end)
