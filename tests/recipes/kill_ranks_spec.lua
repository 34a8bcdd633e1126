local run = require 'tests.recipes.run'

describe('a training over ranks of which one is killed', function()
  it('ends within seconds, says so, and goes on from its last checkpoint', function()
    local code, output, errors = run.shell(('OMP_NUM_THREADS=1 %s tests/recipes/kill_ranks.lua --kills 2 --seed %d')
      :format(run.lumoe, os.time() % 1000))
    assert.equal(0, code, output .. errors)
    assert.matches('2 kills, %d+ steps: the unbroken run', output)
  end)
end)
