--- The wrapper ./lumoe, in a small tree of its own with a program that only prints what it was
-- given, and with stand-ins for apt, sudo and mpirun that write down how they were called.
local dir = require 'pl.dir'
local file = require 'pl.file'
local path = require 'pl.path'
local stringx = require 'pl.stringx'
local utils = require 'pl.utils'

local tree, bin, log

local function sh(command)
  local _, code, out, err = utils.executeex(command)
  return code, out, err
end

--- Runs the wrapper of the small tree with the stand-ins first on PATH.
local function wrapper(words, before)
  return sh(('unset LUMOE_TEST_PATTERN; %s PATH=%s:$PATH LOG=%s %s/lumoe %s'):format(before or '', bin, log, tree, words))
end

local function write(name, text, executable)
  file.write(name, text)
  if executable then sh('chmod +x ' .. name) end
end

local function stand_in(name, body) write(bin .. '/' .. name, '#!/bin/sh\n' .. body, true) end

--- What the stand-ins wrote down since the last call.
local function calls()
  local text = file.read(log) or ''
  file.write(log, '')
  return text
end

local cmake_lists = [[
cmake_minimum_required(VERSION 3.25)
project(small LANGUAGES NONE)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_custom_command(OUTPUT bin/lumoe DEPENDS ${CMAKE_SOURCE_DIR}/runtime/program
  COMMAND sh ${CMAKE_SOURCE_DIR}/runtime/program)
add_custom_target(program ALL DEPENDS bin/lumoe)
add_custom_target(tests)
]]
local program = [[
echo built >>$LOG
printf '#!/bin/sh\necho "in $PWD:" "$@" "threads $OMP_NUM_THREADS"\n' >bin/lumoe
chmod +x bin/lumoe
]]

before_each(function()
  tree = select(2, sh 'mktemp -d'):match '%S+'
  bin, log = tree .. '/stand-ins', tree .. '/log'
  dir.makepath(bin)
  dir.makepath(tree .. '/runtime')
  file.copy('lumoe', tree .. '/lumoe')
  file.copy('CMakePresets.json', tree .. '/CMakePresets.json')
  sh(('chmod +x %s/lumoe'):format(tree))
  file.write(tree .. '/CMakeLists.txt', cmake_lists)
  file.write(tree .. '/runtime/program', program)
  -- every package is there, unless $MISSING names it
  stand_in('dpkg-query', [[
while [ "${1#-}" != "$1" ]; do [ "$1" = -f ] && shift; shift; done
for p; do
  case " ${MISSING-} $(cat $LOG.missing 2>/dev/null) " in *" $p "*) ;; *) echo "$p installed" ;; esac
done]])
  stand_in('apt-cache', 'echo "  Candidate: ${CANDIDATE-1.0}"')
  stand_in('apt-get', 'echo "apt-get $*" >>$LOG; [ "$1" != "${APT_FAILS-}" ]')
  stand_in('sudo', 'echo "sudo" >>$LOG; exec "$@"')
  stand_in('mpirun', 'if [ "$1" = --version ]; then echo "mpirun (Open MPI) 4"; else echo "mpirun $*" >>$LOG; fi')
  file.write(log, '')
end)

after_each(function() dir.rmtree(tree) end)

describe('the wrapper', function()
  it('builds, then runs the program in the place it was called from, quoting kept', function()
    local code, out = wrapper([[a "b  c"]], 'cd / &&')
    assert.equal(0, code)
    assert.equal('in /: a b  c threads\n', (out:gsub('threads %d*', 'threads')))
    assert.equal('built\n', calls())
  end)

  it('works through a symbolic link', function()
    sh(('ln -s %s/lumoe %s/link'):format(tree, bin))
    local code, out = sh(('PATH=%s:$PATH LOG=%s %s/link x'):format(bin, log, bin))
    assert.equal(0, code)
    assert.matches(': x', out)
  end)

  it('builds again only when a source is newer', function()
    wrapper ''
    calls()
    wrapper ''
    assert.equal('', calls())
    sh(('touch -d "+2 seconds" %s/runtime/program'):format(tree))
    wrapper ''
    assert.equal('built\n', calls())
  end)

  it('keeps the exit code of the program', function()
    file.write(tree .. '/runtime/program', "printf '#!/bin/sh\\nexit 7\\n' >bin/lumoe; chmod +x bin/lumoe")
    assert.equal(7, (wrapper ''))
  end)

  it('says that building failed, why, and what to try', function()
    file.write(tree .. '/runtime/program', 'echo a fault in the source; exit 1')
    local code, out, err = wrapper ''
    assert.equal(1, code)
    assert.equal('', out)
    assert.matches('building failed', err)
    assert.matches('| a fault in the source', err)
    assert.matches('What to try:', err)
    file.write(tree .. '/runtime/program', program) -- and mended, it goes on
    assert.equal(0, (wrapper ''))
  end)

  it('says that configuring failed', function()
    file.write(tree .. '/CMakeLists.txt', 'cmake_minimum_required(VERSION 3.25)\nproject(x NONE)\nfind_package(Nowhere REQUIRED)')
    local code, _, err = wrapper ''
    assert.equal(1, code)
    assert.matches('configuring failed', err)
    assert.matches('Nowhere', err)
  end)

  it('builds anew when the tree has moved', function()
    wrapper ''
    local new = tree .. '-moved'
    sh(('mv %s %s'):format(tree, new))
    tree, bin, log = new, new .. '/stand-ins', new .. '/log'
    calls()
    local code = wrapper ''
    assert.equal(0, code)
    assert.equal('built\n', calls())
  end)

  it('lets a second one wait for the first', function()
    file.write(tree .. '/runtime/program', 'sleep 1\n' .. program)
    local code, _, err = wrapper('', ('(PATH=%s:$PATH LOG=%s %s/lumoe >/dev/null 2>&1) & sleep 0.4;'):format(bin, log, tree))
    assert.equal(0, code)
    assert.matches('waiting for another', err)
    assert.equal('built\n', calls())
  end)

  it('adds less than 0.3 s when there is nothing to do', function()
    wrapper ''
    local best = math.huge
    for _ = 1, 5 do
      local _, _, err = sh(([[bash -c 'TIMEFORMAT=%%R; time PATH=%s:$PATH LOG=%s %s/lumoe']]):format(bin, log, tree))
      best = math.min(best, tonumber(err:match '[%d.]+%s*$'))
    end
    assert.is_true(best < 0.3, ('took %g s'):format(best))
  end)

  it('shows its usage without building', function()
    local code, out = wrapper '--help'
    assert.equal(0, code)
    assert.matches('%./lumoe test %[PATTERN%]', out)
    assert.equal('', calls())
  end)
end)

describe('packages', function()
  it('that are missing are named with the reason, installed once, as root', function()
    local code, _, err = wrapper('', 'MISSING="libdnnl-dev lua-posix"')
    assert.equal(0, code)
    assert.matches('libdnnl%-dev +%(matrix products', err)
    assert.not_matches('libopenmpi', err)
    assert.equal('apt-get install -y --no-install-recommends libdnnl-dev lua-posix\nbuilt\n',
      (calls():gsub('^sudo\n', '')))
    wrapper('', 'MISSING="libdnnl-dev lua-posix"')
    assert.equal('', calls())
  end)

  it("need apt's lists updated only when those do not know them", function()
    wrapper('', 'MISSING=libdnnl-dev CANDIDATE="(none)"')
    assert.matches('apt%-get update\n.*apt%-get install', calls())
  end)

  it('of an older LuaJIT will do, and are taken where there is no other', function()
    wrapper('', 'MISSING=libluajit2-5.1-dev')
    assert.equal('built\n', calls())
    dir.rmtree(tree .. '/build')
    stand_in('apt-cache', 'case $2 in libluajit2*) ;; *) echo "  Candidate: 1.0" ;; esac')
    wrapper('', 'MISSING="libluajit2-5.1-dev libluajit-5.1-dev"')
    assert.matches('install .* libluajit%-5%.1%-dev\n', calls())
  end)

  it('that cannot be installed are said, with the log', function()
    local code, _, err = wrapper('', 'MISSING=libdnnl-dev APT_FAILS=install')
    assert.equal(1, code)
    assert.matches('installing packages failed', err)
    assert.matches('apt%-get install libdnnl%-dev', err)
  end)

  it('are asked of an administrator where there is no root and no sudo', function()
    stand_in('id', 'echo 1000')
    -- a PATH with everything but sudo
    sh(('rm %s/sudo; for f in /bin/* /usr/bin/*; do [ -e %s/${f##*/} ] || ln -s $f %s; done; rm -f %s/sudo')
      :format(bin, bin, bin, bin))
    local code, _, err = sh(('PATH=%s LOG=%s MISSING=libdnnl-dev %s/lumoe'):format(bin, log, tree))
    assert.equal(1, code)
    assert.matches('there is no sudo', err)
    assert.matches('apt%-get install libdnnl%-dev', err)
    assert.equal('', calls())
  end)

  it('go through sudo where not root', function()
    stand_in('id', 'echo 1000')
    wrapper('', 'MISSING=libdnnl-dev')
    assert.matches('^sudo\napt%-get install', calls())
  end)

  it('are named, with the cmake lines, where there is no apt', function()
    file.write(tree .. '/CMakeLists.txt', 'cmake_minimum_required(VERSION 3.25)\nproject(x NONE)\nfind_package(Nowhere REQUIRED)')
    sh(('for f in /bin/* /usr/bin/*; do [ -e %s/${f##*/} ] || ln -s $f %s; done; rm -f %s/apt-* %s/dpkg*')
      :format(bin, bin, bin, bin))
    local code, _, err = sh(('PATH=%s LOG=%s %s/lumoe'):format(bin, log, tree))
    assert.equal(1, code)
    assert.matches('libdnnl%-dev', err)
    assert.matches('cmake %-%-preset default\n *cmake %-%-build build', err)
  end)

  it('for the tests are installed by `test` alone', function()
    wrapper('', 'MISSING=lua-busted')
    assert.equal('built\n', calls())
    wrapper('test', 'MISSING=lua-busted')
    assert.matches('install .*lua%-busted', calls())
  end)
end)

describe('-np', function()
  before_each(function()
    wrapper ''
    calls()
    stand_in('nproc', 'echo 4')
  end)

  it('starts mpirun with what root and the cores need', function()
    stand_in('id', 'echo 0')
    wrapper('-np 2 x.lua "a b"', 'unset OMP_NUM_THREADS;')
    local line = calls()
    assert.matches('^mpirun %-np 2 ', line)
    assert.matches('--bind-to none', line, 1, true)
    assert.matches('--allow-run-as-root', line, 1, true)
    assert.not_matches('oversubscribe', line)
    assert.matches('/build/bin/lumoe x.lua a b\n$', line)
  end)

  it('lets more ranks than cores run, and not as root what need not', function()
    stand_in('id', 'echo 1000')
    wrapper '-np 8 x.lua'
    local line = calls()
    assert.matches('--oversubscribe', line, 1, true)
    assert.not_matches('allow%-run%-as%-root', line)
  end)

  it('divides the cores, or keeps the threads it was given', function()
    stand_in('mpirun', 'echo "threads $OMP_NUM_THREADS" >>$LOG')
    wrapper('-np 2 x.lua', 'unset OMP_NUM_THREADS;')
    assert.matches('threads 2\n$', calls())
    wrapper('-np 2 x.lua', 'OMP_NUM_THREADS=3')
    assert.matches('threads 3\n$', calls())
  end)

  it('keeps the exit code and standard input', function()
    stand_in('mpirun', 'if [ "$1" = --version ]; then exit; fi; cat; exit 9')
    local code, out = wrapper('-np 2 -', 'echo hello |')
    assert.equal(9, code)
    assert.equal('hello\n', out)
  end)

  it('turns Ctrl-C into SIGUSR1, and the third into the end', function()
    stand_in('mpirun', [[
[ "$1" != --version ] || exit
trap 'echo usr1 >>$LOG' USR1
trap 'echo term >>$LOG; exit 5' TERM
while :; do sleep 0.05; done]])
    local code = sh(([[bash -c 'set -m
      PATH=%s:$PATH LOG=%s %s/lumoe -np 2 x.lua & job=$!
      for i in 1 2 3; do sleep 0.5; kill -INT $job; done
      wait $job']]):format(bin, log, tree))
    assert.equal(5, code)
    assert.same({ 'usr1', 'usr1', 'term' }, { unpack(stringx.splitlines(calls())) })
  end)

  it('says what killed a rank, or the job', function()
    for code, said in pairs { [137] = 'a rank was killed by signal 9\n', [139] = 'signal 11\n', [130] = '^$', [1] = '^$' } do
      stand_in('mpirun', ('[ "$1" = --version ] || exit %d'):format(code))
      local status, _, err = wrapper '-np 2 x.lua'
      assert.equal(code, status)
      assert.matches(said, err)
    end
    for code, said in pairs { [1] = 'the job was ended by SIGTERM\n$', [0] = '^$' } do
      stand_in('mpirun', ([[
[ "$1" != --version ] || exit
trap 'echo usr1 >>$LOG; exit %d' USR1
while :; do sleep 0.05; done]]):format(code))
      local status, _, err = sh(([[sh -c 'PATH=%s:$PATH LOG=%s %s/lumoe -np 2 x.lua & job=$!
        sleep 0.5
        kill -TERM $job
        wait $job']]):format(bin, log, tree))
      assert.equal(code == 0 and 0 or 143, status)
      assert.matches(said, err)
      assert.matches('usr1', calls())
    end
  end)

  it('refuses what is no number, and no script', function()
    assert.matches("not 'x'", select(3, wrapper '-np x y.lua'))
    assert.matches('needs a script', select(3, wrapper '-np 2'))
    assert.matches('needs a number', select(3, wrapper '-np'))
  end)
end)

describe('test', function()
  it('runs all, or says that nothing has the pattern', function()
    dir.makepath(tree .. '/tests')
    file.copy('tests/run.sh', tree .. '/tests/run.sh')
    file.write(tree .. '/tests/a_spec.lua', "it('adds', f)")
    stand_in('ctest', 'echo "ctest $* [$LUMOE_TEST_PATTERN]"')
    assert.matches('^ctest [^%[]*%[%]\n$', select(2, wrapper 'test'))
    assert.matches('%-R %^%(tests/a_spec%[%.%]lua%)%$ %[adds%]', select(2, wrapper 'test adds'))
    assert.matches('%-R %^%(tests/a_spec%[%.%]lua%)%$', select(2, wrapper 'test a_sp'))
    local code, _, err = wrapper 'test nothing'
    assert.equal(1, code)
    assert.matches("no spec has 'nothing'", err)
    assert.is_truthy(path.exists(tree .. '/build/.packages-test'))
  end)
end)
