local program = os.getenv 'LUMOE' or 'build/bin/lumoe'

describe('a model cut over a tensor group', function()
  for _, case in ipairs { { 1, 'f32' }, { 2, 'f32' }, { 3, 'f32' }, { 6, 'f32' }, { 2, 'bf16' } } do
    it(('has the loss, gradients and outputs of the whole one: %d ranks, %s'):format(unpack(case)), function()
      local launcher = ('LUMOE_DEBUG=collectives mpirun -np %d --oversubscribe --allow-run-as-root'):format(case[1])
      local pipe = io.popen(('%s %s tests/lua/nn/tensor_parallel.lua %s 2>&1'):format(launcher, program, case[2]))
      assert.equal('all well\n', pipe:read '*a')
      pipe:close()
    end)
  end
end)
