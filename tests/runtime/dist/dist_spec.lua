local lumoe = os.getenv 'LUMOE' or 'build/bin/lumoe'

--- Runs a program of this folder on n ranks. Gives its output, exit code and seconds.
local function mpirun(n, program, argument)
  local command = ('mpirun -np %d --oversubscribe --allow-run-as-root %s tests/runtime/dist/%s %s 2>&1; echo "exit $?"')
    :format(n, lumoe, program, argument)
  local started = os.time()
  local pipe = assert(io.popen(command))
  local output = pipe:read '*a'
  pipe:close()
  return output, tonumber(output:match 'exit (%d+)%s*$'), os.time() - started
end

describe('collectives', function()
  for _, n in ipairs { 1, 2, 3, 4 } do
    it('give what they promise on ' .. n .. ' ranks', function()
      local output, code = mpirun(n, 'collectives.lua', n)
      assert.equal('all well\nexit 0\n', output)
      assert.equal(0, code)
    end)
  end

  for _, n in ipairs { 1, 2, 3, 4 } do
    it('give the same without waiting, many at a time, on ' .. n .. ' ranks', function()
      assert.equal('all well\nexit 0\n', (mpirun(n, 'async.lua', n)))
    end)
  end

  it('need no launcher in a world of one', function()
    local pipe = io.popen(lumoe .. ' tests/runtime/dist/collectives.lua 1 2>&1')
    assert.equal('all well\n', pipe:read '*a')
    pipe:close()
  end)
end)

describe('a rank that', function()
  local cases = {
    { 'error', 'no such thing' },
    { 'exit' },
    { 'leaves', 'rank 1 has already left the job' },
    { 'dies' },
    { 'killed' },
    { 'other_call', 'same order' },
  }
  for _, case in ipairs(cases) do
    it(case[1] .. ': ends the job within 5 s, and not as a success', function()
      local output, code, seconds = mpirun(2, 'faults.lua', case[1])
      assert.is_true(seconds <= 6, ('took %d s:\n%s'):format(seconds, output))
      assert.not_equal(0, code)
      if case[2] then assert.truthy(output:find(case[2], 1, true), output) end
    end)
  end
end)
