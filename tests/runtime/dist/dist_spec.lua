local lumoe = os.getenv 'LUMOE' or 'build/bin/lumoe'

--- What a program of this folder writes on n ranks, and its exit code.
local function mpirun(n, program, environment)
  local command = '%s mpirun -np %d --oversubscribe --allow-run-as-root %s tests/runtime/dist/%s %d 2>&1'
  local pipe = assert(io.popen(command:format(environment or '', n, lumoe, program, n) .. '; echo "exit $?"'))
  local output = pipe:read '*a'
  pipe:close()
  return output
end

describe('collectives', function()
  for _, n in ipairs { 1, 2, 3, 4 } do
    it('give what they promise on ' .. n .. ' ranks', function()
      assert.equal('all well\nexit 0\n', mpirun(n, 'collectives.lua'))
    end)

    it('give the same without waiting, many at a time, on ' .. n .. ' ranks', function()
      assert.equal('all well\nexit 0\n', mpirun(n, 'async.lua'))
    end)

    it('carry messages of every length, on ' .. n .. ' ranks', function()
      assert.equal('all well\nexit 0\n', mpirun(n, 'large.lua'))
    end)
  end

  it('carry them through MPI where its user has chosen how', function()
    assert.equal('all well\nexit 0\n', mpirun(3, 'large.lua', 'OMPI_MCA_btl_vader_single_copy_mechanism=none'))
    assert.equal('all well\nexit 0\n', mpirun(2, 'large.lua', 'OMPI_MCA_btl_vader_single_copy_mechanism=cma'))
  end)

  it('give the same when they are compared first', function()
    assert.equal('all well\nexit 0\n', mpirun(4, 'collectives.lua', 'LUMOE_DEBUG=collectives'))
    assert.equal('all well\nexit 0\n', mpirun(3, 'async.lua', 'LUMOE_DEBUG=collectives'))
  end)

  it('need no launcher in a world of one', function()
    local pipe = io.popen(lumoe .. ' tests/runtime/dist/collectives.lua 1 2>&1')
    assert.equal('all well\n', pipe:read '*a')
    pipe:close()
  end)
end)
