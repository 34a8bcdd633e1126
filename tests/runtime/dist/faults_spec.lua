-- slow: starts mpirun thirty times, and looks at the clock
-- What goes wrong on one rank ends the job soon, with the message that says what it was.
local clock_gettime = require('posix.time').clock_gettime
local lumoe = os.getenv 'LUMOE' or 'build/bin/lumoe'

local function now()
  local t = clock_gettime(1) -- CLOCK_MONOTONIC
  return t.tv_sec + t.tv_nsec / 1e9
end

local function shell(command)
  local started = now()
  local pipe = assert(io.popen(command))
  local output = pipe:read '*a'
  pipe:close()
  return output, now() - started
end

--- Runs faults.lua on n ranks, each with what `environment` sets. Gives what it wrote, its exit code, seconds.
local function mpirun(n, fault, environment)
  local program = 'tests/runtime/dist/faults.lua'
  local output, seconds = shell(('%s mpirun -np %d --oversubscribe --allow-run-as-root %s %s %s 2>&1; echo "exit $?"')
    :format(environment or '', n, lumoe, program, fault))
  return output, tonumber(output:match 'exit (%d+)%s*$'), seconds
end

local function ends_soon(output, code, seconds)
  assert.is_true(seconds < 6, ('took %.1f s:\n%s'):format(seconds, output)) -- with 1 s to start
  assert.not_equal(0, code)
end

describe('a rank that', function()
  local cases = {
    { 'error', '^%[rank 1%] tests/runtime/dist/faults.lua:%d+: no such thing\n' },
    { 'error_between', '^%[rank 1%] tests/runtime/dist/faults.lua:%d+: no such thing\n' },
    { 'error_amid', '^%[rank 1%] tests/runtime/dist/faults.lua:%d+: no such thing\n' },
    { 'exit' },
    { 'leaves', '^%[rank 0%] [^\n]*all_reduce over 2 ranks: rank 1 has already left the job\n' },
    -- what it began may have arrived, and then it is missed by the next call
    { 'leaves_amid', '^%[rank 0%] [^\n]*all_%l+[_%l]* over 2 ranks: rank 1 has already left the job\n' },
    { 'dies', 'rank 1 .* exited on signal 11' },
    { 'killed', 'rank 1 .* exited on signal 9' },
    { 'killed_amid', 'rank 1 .* exited on signal 9' },
    { 'other_call', 'do all ranks make the same calls in the same order?' },
    { 'sends_more', 'do all ranks make the same calls in the same order?' },
    { 'sends_less', 'do all ranks make the same calls in the same order?' },
    { 'sends_other', 'do all ranks make the same calls in the same order?' },
  }
  for _, case in ipairs(cases) do
    it(case[1] .. ': ends the job within 5 s, and not as a success', function()
      local output, code, seconds = mpirun(2, case[1])
      ends_soon(output, code, seconds)
      if case[2] then assert.matches(case[2], output) end
    end)
  end
end)

describe('in debug mode, a rank', function()
  local WHERE = 'tests/runtime/dist/faults.lua:%d+'
  -- the sentence, what the others did, what the last rank did
  local cases = {
    { 'other_call', 'its ranks do not do the same', 'all_reduce of 1 i64 %(sum%)', 'broadcast of 4000 bytes from its rank 1' },
    { 'other_count', 'its ranks do not do the same', 'all_reduce of 8 i64 %(sum%)', 'all_reduce of 7 i64 %(sum%)' },
    { 'other_root', 'its ranks do not do the same', 'broadcast of 400 bytes from its rank 0',
      'broadcast of 400 bytes from its rank 1' },
    { 'other_started', 'its ranks do not do the same', 'all_reduce of 4 i64 %(sum%)', 'all_reduce of 3 i64 %(sum%)' },
    { 'other_sizes', 'its rank 2 sends 24 bytes to its rank 0, which expects 16', 'all_to_all' },
    { 'other_group', 'its ranks do not do the same', 'for a group of ranks 0%-2, all_reduce of 1 i32 %(max%)',
      'for a group of ranks 0, 2, 1, all_reduce of 1 i32 %(max%)' },
    { 'forgets', 'its ranks do not do the same', 'all_reduce of 1 i64 %(sum%)', 'barrier' },
  }
  for _, case in ipairs(cases) do
    local fault, sentence, theirs, its = unpack(case)
    it(fault .. ': everyone hears what each did, and where', function()
      local output, code, seconds = mpirun(3, fault, 'LUMOE_DEBUG=collectives')
      ends_soon(output, code, seconds)
      local list = its and ('\n  ranks 0%%-1: %s, at %s\n  rank 2: %s, at %s\n'):format(theirs, WHERE, its, WHERE)
        or ('\n  ranks 0%%-2: %s, at %s\n'):format(theirs, WHERE) -- the same on all
      assert.matches('^%[rank 0%] ' .. WHERE .. ': [%a_]+ over 3 ranks: ' .. sentence .. list, output)
      assert.equal(1, select(2, output:gsub('%[rank %d', ''))) -- and one rank says it
    end)
  end

  for _, fault in ipairs { 'sleeps', 'loops' } do
    it(fault .. ': after a time, everyone hears who did not come, and what it did last', function()
      local output, code, seconds = mpirun(3, fault, 'LUMOE_DEBUG=collectives LUMOE_TIMEOUT=1')
      ends_soon(output, code, seconds)
      assert.matches('^%[rank %d%] ' .. WHERE .. ': all_reduce over 3 ranks: nothing came for 1 s %(LUMOE_TIMEOUT%)\n'
        .. '  ranks 0%-1: waits in collective 2 of ranks 0%-2: all_reduce of 1 i64 %(sum%), at ' .. WHERE .. '\n'
        .. '  rank 2: is past collective 1 of ranks 0%-2: barrier, at ' .. WHERE .. '\n', output)
    end)
  end

  it('is told of a time-out that is no number', function()
    assert.matches("LUMOE_TIMEOUT: '1m' is not a number of seconds", (mpirun(2, 'none', 'LUMOE_TIMEOUT=1m')))
  end)

  it('sleeps: with a time-out alone, the same without lines', function()
    local output, code, seconds = mpirun(2, 'sleeps', 'LUMOE_TIMEOUT=1')
    ends_soon(output, code, seconds)
    assert.matches('\n  rank 1: is past collective 1 of ranks 0%-1: barrier\n', output)
  end)
end)

describe('a job', function()
  -- The ranks know no end; `stop` is a command for the shell, $job mpirun's process, $ranks theirs.
  local function stopped(n, after, stop)
    local log = os.tmpname()
    local output = shell(([[
      mpirun -np %d --oversubscribe --allow-run-as-root %s tests/runtime/dist/faults.lua none >%s 2>&1 &
      job=$!
      until grep -q running %s; do sleep 0.1; done
      sleep %.3f
      ranks=$(cat /proc/$job/task/$job/children)
      began=$(date +%%s%%3N)
      %s
      wait $job
      echo "exit $? after $(($(date +%%s%%3N) - began)) ms"
      for rank in $ranks; do # each was told to end; on a busy machine that may take a moment
        for try in 1 2 3 4 5 6 7 8 9 10; do
          grep -s '^State:.*[^Z] (' /proc/$rank/status || break
          [ $try = 10 ] && echo "$rank is still there" || sleep 0.1
        done
      done
      cat %s]]):format(n, lumoe, log, log, after, stop, log))
    os.remove(log)
    assert.is_nil(output:find('is still there', 1, true), output)
    local code, milliseconds = output:match 'exit (%d+) after (%d+) ms'
    return output, tonumber(code), milliseconds / 1000
  end

  math.randomseed(os.time())
  for i = 1, 6 do
    it(('ends when one of its ranks is killed at any moment, %d'):format(i), function()
      local after = math.random()
      local output, code, seconds = stopped(3, after, ("kill -9 $(echo $ranks | cut -d ' ' -f %d)"):format(math.random(3)))
      ends_soon(output, code, seconds)
      assert.equal(137, code, ('after %g s:\n%s'):format(after, output))
      assert.matches('exited on signal 9', output)
    end)
  end

  it('ends when a scheduler ends it', function()
    ends_soon(stopped(3, 0.5, 'kill -TERM $job'))
  end)
end)

describe('after an interrupt', function()
  it('that reaches ranks wherever they are, they go on together', function()
    local log = os.tmpname()
    local output = shell(([[
      mpirun -np 3 --oversubscribe --allow-run-as-root %s tests/runtime/dist/interrupted.lua >%s 2>&1 &
      job=$!
      for round in 1 2 3; do
        until grep -q "running.$round" %s || ! kill -0 $job; do sleep 0.1; done
        sleep 0.3
        kill -USR1 $job
      done
      wait $job
      echo "exit $?"
      cat %s]]):format(lumoe, log, log, log))
    os.remove(log)
    assert.matches('^exit 0\n', output)
    assert.matches('all well\n$', output)
  end)

  for _, n in ipairs { 1, 2, 4 } do
    it('groups work again once all have recovered, on ' .. n .. ' ranks', function()
      local output = shell(('mpirun -np %d --oversubscribe --allow-run-as-root %s tests/runtime/dist/recover.lua 2>&1; echo "exit $?"')
        :format(n, lumoe))
      assert.equal('all well\nexit 0\n', output)
    end)
  end

  it("Lua's memory outlives its last user while messages may touch it", function()
    local output = shell(('mpirun -np 2 --oversubscribe --allow-run-as-root %s tests/runtime/dist/raw_buffers.lua 2>&1; echo "exit $?"')
      :format(lumoe))
    assert.equal('all well\nexit 0\n', output)
  end)
end)
