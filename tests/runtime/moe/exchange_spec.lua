local lumoe = os.getenv 'LUMOE' or 'build/bin/lumoe'

local function run(ranks, program, argument)
  local launcher = ranks and ('LUMOE_DEBUG=collectives LUMOE_HOSTS=1,%d mpirun -np %d --oversubscribe --allow-run-as-root ')
    :format(ranks - 1, ranks) or ''
  local pipe = assert(io.popen(('%s%s tests/runtime/moe/%s %s 2>&1'):format(launcher, lumoe, program, argument or '')))
  local output = pipe:read '*a'
  pipe:close()
  return output
end

describe('tokens through experts and back', function()
  it('give the naive outputs and gradients, alone', function()
    assert.equal('100 rounds\n', run(nil, 'exchange_fuzz.lua', 100))
  end)

  it('travel part by part while other parts compute, forward and backward', function()
    assert.equal('under way\n', run(2, 'overlap.lua'))
  end)

  for _, n in ipairs { 2, 3, 4, 6 } do
    it('give the naive outputs and gradients, over ' .. n .. ' ranks', function()
      assert.equal('100 rounds\n', run(n, 'exchange_fuzz.lua', 100))
    end)
  end
end)
