local lumoe = os.getenv 'LUMOE' or 'build/bin/lumoe'

local function run(ranks, program, argument)
  local launcher = ranks and ('LUMOE_DEBUG=collectives mpirun -np %d --oversubscribe --allow-run-as-root '):format(ranks) or ''
  local pipe = assert(io.popen(('%s%s tests/runtime/moe/%s %s 2>&1'):format(launcher, lumoe, program, argument or '')))
  local output = pipe:read '*a'
  pipe:close()
  return output
end

describe('the plan', function()
  it('is the naive one, alone', function()
    assert.equal('2000 rounds\n', run(nil, 'plan_fuzz.lua', 2000))
  end)

  for _, n in ipairs { 2, 3, 4 } do
    it('is the naive one, over ' .. n .. ' ranks', function()
      assert.equal('500 rounds\n', run(n, 'plan_fuzz.lua', 500))
    end)
  end

  for _, n in ipairs { 1, 2, 4 } do
    it('tells a mistake of one rank to ' .. n .. ', naming router and token', function()
      assert.equal('all told\n', run(n, 'plan_errors.lua'))
    end)
  end
end)
