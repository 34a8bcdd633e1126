--- What `cmake --install` places works from anywhere, and does not need the source tree.
local dir = require 'pl.dir'
local path = require 'pl.path'
local utils = require 'pl.utils'

local build = path.dirname(path.dirname(os.getenv 'LUMOE'))

local function sh(command)
  local _, code, out, err = utils.executeex(command)
  return code, out, err
end

describe('an installed lumoe', function()
  local prefix

  setup(function()
    prefix = select(2, sh 'mktemp -d'):match '%S+'
    assert.equal(0, (sh(('cmake --install %s --prefix %s/first'):format(build, prefix))))
    sh(('mv %s/first %s/moved'):format(prefix, prefix)) -- nothing may remember where it was put
  end)

  teardown(function() dir.rmtree(prefix) end)

  it('finds its modules and its libraries', function()
    local code, out, err = sh(([[cd / && %s/moved/bin/lumoe -e '
      require "lumoe.status"
      for name in package.path:gmatch "[^;]+" do io.write(name, "\n") end
      for line in io.lines "/proc/self/maps" do io.write(line, "\n") end']]):format(prefix))
    assert.equal('', err)
    assert.equal(0, code)
    assert.is_truthy(out:find(prefix .. '/moved/lib/liblumoe.so', 1, true))
    assert.is_nil(out:find(build, 1, true))
  end)

  it('runs under a plain mpirun', function()
    local code, out, err = sh(([[cd / && OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
      mpirun --oversubscribe -np 2 %s/moved/bin/lumoe -e 'print(require "lumoe.ffi".lm_dist_world_size())']])
      :format(prefix))
    assert.equal('', err)
    assert.equal(0, code)
    assert.equal('2\n2\n', out)
  end)

  it('can be used from C alone', function() -- sanitized, as the library may be
    local source = '#include "runtime/lumoe.h"\nint main(void) { return lm_last_error() == 0; }'
    local code, _, err = sh(([[cd %s && echo '%s' >use.c && cc -fsanitize=address -Imoved/include/lumoe use.c -o use \
      -Lmoved/lib -llumoe -Wl,-rpath,%s/moved/lib && ASAN_OPTIONS=detect_leaks=0 ./use]]):format(prefix, source, prefix))
    assert.equal(0, code, err)
  end)

  it('has every Lua file of the source tree', function()
    for _, folder in ipairs { 'lua', 'repl', 'recipes' } do
      if path.isdir(folder) then
        for name in dir.dirtree(folder) do
          if name:match '%.lua$' then
            assert.is_truthy(path.exists(('%s/moved/share/lumoe/%s'):format(prefix, name)), name)
          end
        end
      end
    end
  end)
end)
