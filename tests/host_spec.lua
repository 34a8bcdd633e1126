--- The program as a user of `lua` meets it: command line, arg, exit codes, errors, interrupts.
local stringx = require 'pl.stringx'
local utils = require 'pl.utils'

local program = os.getenv 'LUMOE'

--- Runs the program with a shell's words; returns exit code, stdout, stderr.
local function lumoe(words, before)
  local _, code, out, err = utils.executeex((before or '') .. ' ' .. program .. ' ' .. words)
  return code, out, err
end

describe('the command line', function()
  it('runs a script with arg and varargs', function()
    local code, out = lumoe('-e "x = 1" - a "b c"', [[echo 'print(x, arg[0], arg[2], arg[-1], ...)' |]])
    assert.equal(0, code)
    assert.equal('1\t-\tb c\tx = 1\ta\tb c\n', out)
  end)

  it('runs -e, -l and -j in order', function()
    local _, out = lumoe [[-joff -e 'print((jit.status()))' -lpl.List -e 'print(package.loaded["pl.List"] ~= nil)']]
    assert.equal('false\ntrue\n', out)
  end)

  it('runs standard input when that is not a terminal', function()
    local _, out = lumoe('', [[echo 'print(6 * 7)' |]])
    assert.equal('42\n', out)
  end)

  it('ends options at --', function()
    local code, _, err = lumoe '-- -e'
    assert.equal(1, code)
    assert.matches('cannot open %-e', err)
  end)

  it('shows its version and its usage', function()
    assert.matches('^Lumoe %d+%.%d+%.%d+ %(LuaJIT', select(2, lumoe '-v'))
    assert.matches('^usage: lumoe', select(2, lumoe '--help'))
  end)

  it('refuses an option that it does not know', function()
    local code, _, err = lumoe '-q'
    assert.equal(1, code)
    assert.matches("unrecognized option '%-q'", err)
    code, _, err = lumoe '-e'
    assert.equal(1, code)
    assert.matches("'%-e' needs an argument", err)
  end)

  it('says where the tests and -np are', function()
    assert.matches('./lumoe test', select(3, lumoe('test', 'cd / &&')), 1, true)
    assert.matches('mpirun %-np N', select(3, lumoe '-np 2 x.lua'))
  end)

  it('runs LUA_INIT first', function()
    assert.equal('7\n', select(2, lumoe([[-e 'print(y)']], "LUA_INIT='y = 7'")))
  end)
end)

describe('what a script finds', function()
  it("has Debian's modules and Lumoe's own", function()
    local code, out, err = lumoe([[-e 'require "cjson" require "pl.List" require "posix.unistd"
      require "argparse" print(require "ffi".string(require "lumoe.ffi".lm_last_error()))']], 'cd / &&')
    assert.equal('', err)
    assert.equal(0, code)
    assert.equal('no error\n', out)
  end)

  it('stands on a LuaJIT with GC64', function()
    assert.is_true(require('ffi').abi 'gc64')
  end)

  it('starts in far less than 50 ms', function()
    local best = math.huge
    for _ = 1, 5 do
      local _, _, _, err = utils.executeex(('bash -c "TIMEFORMAT=%%R; time %s -e x=0"'):format(program))
      best = math.min(best, tonumber(err))
    end
    -- the sanitizers' build loads them too
    assert.is_true(best < (program:find('asan', 1, true) and 0.3 or 0.03), ('took %g s'):format(best))
  end)
end)

describe('exit codes', function()
  for words, wanted in pairs {
    [ [[-e 'os.exit(3)']] ] = 3, [ [[-e 'os.exit(false)']] ] = 1, [ [[-e 'os.exit(true)']] ] = 0,
    [ [[-e 'os.exit()']] ] = 0, [ [[-e 'error "x"']] ] = 1, [ [[-e 'x =']] ] = 1,
    [ [[-e 'error()']] ] = 1, ['-l no.such.module'] = 1, ['no_such_file.lua'] = 1,
  } do
    it(('%s gives %d'):format(words, wanted), function() assert.equal(wanted, (lumoe(words))) end)
  end
end)

describe('an error', function()
  it('is shown alone where it is for who runs the program', function()
    local code, _, err = lumoe([[-e "require('lumoe.status').refuse('%s: no such %s', 'here', 'thing')"]])
    assert.equal(1, code)
    assert.equal('lumoe: here: no such thing\n', err)
    -- caught, it is a message like any other; and what comes after it has its traceback
    _, _, err = lumoe([[-e "print(pcall(require('lumoe.status').refuse, 'no')) error 'boom'"]])
    assert.matches('boom\nstack traceback:\n', err)
  end)

  it('is shown with its place and a traceback', function()
    local _, out, err = lumoe [[-e 'io.write "before"  local function f() error "boom" end  f()']]
    assert.equal('before', out)
    assert.matches('^lumoe: %(command line%):1: boom\nstack traceback:\n', err)
    assert.matches("in function 'f'", err)
  end)

  it('may be any value', function()
    assert.matches('object', select(3, lumoe
      [[-e 'error(setmetatable({}, { __tostring = function() return "an object" end }))']]))
    assert.matches('%(error object is a table value%)', select(3, lumoe [[-e 'error {}']]))
    assert.equal('', select(3, lumoe [[-e 'error(nil)']]))
  end)
end)

describe('Ctrl-C', function()
  -- bash with job control, as a shell otherwise starts background jobs deaf to SIGINT. The
  -- script is given up after 10 s.
  local function interrupt(script, times, signal)
    local _, code, out, err = utils.executeex(([[bash -c '
      set -m
      %s -e "$1" & job=$!
      (sleep 10; kill -9 $job) 2>/dev/null & guard=$!
      for i in $(seq %d); do sleep 0.3; kill -%s $job 2>/dev/null; done
      wait $job; code=$?
      kill -- -$guard
      exit $code' bash %s]]):format(program, times or 1, signal or 'INT', utils.quote_arg(script)))
    return code, out, err
  end

  for name, script in pairs {
    ['a compiled loop'] = 'local x = 0  for i = 1, 1e15 do x = x + i end',
    ['an empty loop'] = 'while true do end',
    ['a loop over strings'] = 'local s = "" while true do s = (s .. "x"):sub(-50) end',
    ['a coroutine'] = 'local f = coroutine.wrap(function() while true do coroutine.yield(1) end end) while true do f() end',
  } do
    it('stops ' .. name, function()
      local code, _, err = interrupt(script)
      assert.equal(130, code)
      assert.matches('interrupted\nstack traceback:', err)
    end)
  end

  it('is only counted when a script asks for that', function()
    local code, out = interrupt [[local host = require "lumoe.host"
      host.interrupts(2, 3)
      while host.interrupted() == 0 do end
      print("step finished", host.interrupted())]]
    assert.equal(0, code)
    assert.equal('step finished\t1\n', out)
  end)

  it('by SIGTERM counts once, however often a scheduler repeats it', function()
    local code, out = interrupt([[local host = require "lumoe.host"
      host.interrupts(2, 3)
      local ended = os.time() + 3
      while os.time() < ended do end
      print("saved", host.interrupted())]], 4, 'TERM')
    assert.equal(0, code)
    assert.equal('saved\t1\n', out)
  end)

  it('ends a script that swallows it', function()
    local code = interrupt('while true do pcall(function() while true do end end) end', 3)
    assert.equal(130, code)
  end)
end)

describe('under mpirun', function()
  local ranks = 'OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe -np 2'

  it('knows its rank without starting MPI', function()
    local _, out = lumoe([[-e 'print("rank", require "lumoe.host".rank)']], ranks)
    local lines = stringx.splitlines(out)
    lines:sort()
    assert.same({ 'rank\t0', 'rank\t1' }, { lines[1], lines[2] })
  end)

  it('ends all ranks soon after an error on one, with its rank and traceback', function()
    local code, _, err = lumoe([[-e 'if require "lumoe.host".rank == 1 then error("boom at " .. os.time()) end
      require "posix.unistd".sleep(30)']], ranks)
    assert.is_true(code ~= 0)
    assert.matches('%[rank 1%] %(command line%):1: boom at %d+\nstack traceback:', err)
    assert.is_true(os.time() - err:match 'boom at (%d+)' <= 5)
  end)

  it('ends them with a word also after an error without one', function()
    local code, _, err = lumoe([[-e 'if require "lumoe.host".rank == 1 then error(nil) end require "posix.unistd".sleep(30)']], ranks)
    assert.equal(1, code)
    assert.matches('%[rank 1%] %(error object is a nil value%)\nstack traceback:', err)
  end)

  it('ends the ranks that wait in a collective too', function()
    local code, _, err = lumoe([[-e 'local C = require "lumoe.ffi"
      if C.lm_dist_rank() == 1 then error("boom at " .. os.time()) end
      C.lm_barrier(nil)
      require "posix.unistd".sleep(30)']], ranks)
    assert.equal(1, code)
    assert.matches('%[rank 1%] %(command line%):2: boom at %d+\nstack traceback:', err)
    assert.is_true(os.time() - err:match 'boom at (%d+)' <= 5)
  end)

  it('lets an interrupt, as SIGUSR1, into a collective that waits', function()
    local code, _, err = lumoe([[-e 'local C, unistd = require "lumoe.ffi", require "posix.unistd"
      if C.lm_dist_rank() == 1 then unistd.sleep(30) end
      os.execute("(sleep 0.5; kill -USR1 " .. unistd.getpid() .. ") &")
      C.lm_barrier(nil)
      for _ = 1, 10 do end
      error "not interrupted"']], ranks)
    assert.equal(130, code)
    assert.matches('%[rank 0%] .*interrupted\nstack traceback:', err)
  end)

  it('takes os.exit with a failure as one', function()
    local code, out = lumoe([[-e 'if require "lumoe.host".rank == 1 then print(os.time()) os.exit(4) end
      require "posix.unistd".sleep(30)']], ranks)
    assert.is_true(os.time() - out:match '%d+' <= 5)
    assert.equal(4, code)
  end)

  it("shares the host's cores", function()
    local cores = tonumber((select(3, utils.executeex 'nproc')))
    local _, out = lumoe([[-e 'io.write(os.getenv "OMP_NUM_THREADS", "\n")']],
      'unset OMP_NUM_THREADS; ' .. ranks .. ' --bind-to none')
    assert.equal(('%d\n'):format(math.max(1, math.floor(cores / 2))):rep(2), out)
  end)

  describe('on a host with two nodes of memory', function()
    local dir = require('posix.stdlib').mkdtemp '/tmp/lua_XXXXXX'
    local all = utils.readfile '/proc/self/status':match 'Cpus_allowed_list:%s*(%S+)'
    local last = tonumber(all:match '^0%-(%d+)$') -- cores are 0 to last, or this is no place for these tests
    local second = last and (last > 1 and ('1-%d'):format(last) or '1')
    setup(function()
      utils.executeex('mkdir ' .. dir .. '/node0 ' .. dir .. '/node2') -- numbers may have gaps
      utils.writefile(dir .. '/node0/cpulist', '0\n')
      utils.writefile(dir .. '/node2/cpulist', (second or '1') .. '\n')
    end)
    teardown(function() utils.executeex('rm -r ' .. dir) end)

    -- Each rank's cores, as the system lists them, in the order of ranks.
    local function cores_of(n, flags)
      local _, out = lumoe([[-e 'local own = io.open "/proc/self/status":read "*a":match "Cpus_allowed_list:%s*(%S+)"
        io.write(require "lumoe.host".rank, " ", own, "\n")']],
        ('LUMOE_NODES=%s OMP_NUM_THREADS=1 mpirun -np %d --oversubscribe --allow-run-as-root %s'):format(dir, n, flags))
      local list = {}
      for rank, own in out:gmatch '(%d+) (%S+)' do list[rank + 1] = own end
      return list
    end

    it('keeps each rank at one of them', function()
      if not last then return pending('on cores ' .. all) end
      assert.same({ '0', second }, cores_of(2, '--bind-to none'))
      assert.same({ '0', '0', second, second }, cores_of(4, '--bind-to none'))
    end)

    it('leaves ranks alone that do not divide among them, or that the launcher has bound', function()
      if not last then return pending('on cores ' .. all) end
      assert.same({ all, all, all }, cores_of(3, '--bind-to none'))
      assert.same({ '0', '1' }, cores_of(2, '--bind-to core'))
    end)
  end)
end)
