--- House rules that a script can check: who may know whom, how C is laid out, luacheck.
local dir = require 'pl.dir'
local file = require 'pl.file'
local path_of = require 'pl.path'
local stringx = require 'pl.stringx'
local utils = require 'pl.utils'

--- Files of the folder and all below it whose names end in one of the endings.
local function files(folder, ...)
  local found = {}
  if not path_of.isdir(folder) then return found end -- a room that is still empty
  for _, ending in ipairs { ... } do
    for path in dir.dirtree(folder) do
      if path:sub(-#ending) == ending then found[#found + 1] = path end
    end
  end
  table.sort(found)
  return found
end

--- Appends `path:line: text` for each line of the files in which `wrong(text, path)` holds.
local function offences(paths, wrong)
  local found = {}
  for _, path in ipairs(paths) do
    for number, line in ipairs(stringx.splitlines(file.read(path))) do
      if wrong(line, path) then found[#found + 1] = ('%s:%d: %s'):format(path, number, line) end
    end
  end
  return table.concat(found, '\n')
end

-- Dependencies point down only. What each room may include or require:
local rooms = {
  { 'kernels', { 'kernels/' } },
  { 'runtime', { 'kernels/', 'runtime/' } },
  { 'repl', { 'repl/', 'runtime/lumoe.h' } },
}

describe('C', function()
  for _, room in ipairs(rooms) do
    local folder, may = room[1], room[2]
    it(folder .. ' includes only what lies below it', function()
      assert.equal('', offences(files(folder, '.c', '.h', '.cpp', '.def', '.cu'), function(line)
        local included = line:match '^%s*#%s*include%s+"([^"]+)"'
        if not included then return false end
        for _, prefix in ipairs(may) do
          if stringx.startswith(included, prefix) then return false end
        end
        return true
      end))
    end)
  end

  it('knows Lua in the host and the line editor alone, MPI in dist alone', function()
    local paths = files('runtime', '.c', '.h', '.cpp')
    for _, path in ipairs(files('kernels', '.c', '.h')) do paths[#paths + 1] = path end
    assert.equal('', offences(paths, function(line, path)
      local included = line:match '^%s*#%s*include%s+<([^>]+)>' or ''
      return included:match '^lua' and not path:match '^runtime/host/'
        or included == 'lauxlib.h' and not path:match '^runtime/host/'
        or included == 'mpi.h' and not path:match '^runtime/dist/'
    end))
  end)

  it('hides system headers from the FFI in public headers', function()
    local header = dir.getfiles('runtime', '*.h')
    for _, path in ipairs(header) do
      if path:match '_impl%.h$' then goto next end -- not public
      local depth, hidden = 0, nil
      for _, line in ipairs(stringx.splitlines(file.read(path))) do
        if line:match '^#%s*if' then
          depth = depth + 1
          if line:match '^#%s*ifndef LM_CDEF' then hidden = hidden or depth end
        elseif line:match '^#%s*endif' or line:match '^#%s*else' and hidden == depth then
          if hidden == depth then hidden = nil end
          if line:match '^#%s*endif' then depth = depth - 1 end
        end
        if line:match '^%s*#%s*include%s+<' then
          assert.is_truthy(hidden, path .. ': outside #ifndef LM_CDEF: ' .. line)
        end
      end
      ::next::
    end
  end)

  it('is laid out by clang-format', function()
    local version = select(3, utils.executeex 'clang-format --version'):match 'version (%d+)'
    if version ~= '14' then -- others break some lines differently
      return pending(('clang-format is %s; 14 is the one that decides'):format(version))
    end
    local paths = files('runtime', '.c', '.h', '.cpp')
    for _, folder in ipairs { 'kernels', 'repl' } do
      for _, path in ipairs(files(folder, '.c', '.h')) do paths[#paths + 1] = path end
    end
    local _, code, _, err = utils.executeex('clang-format --dry-run --Werror ' .. table.concat(paths, ' '))
    assert.equal('', err)
    assert.equal(0, code)
  end)
end)

describe('Lua', function()
  local function required(line) return line:match [=[require%s*%(?%s*['"]([^'"]+)['"]]=] end

  it("package lumoe requires nothing of the prompt's, the recipes' or the tests'", function()
    assert.equal('', offences(files('lua', '.lua'), function(line)
      local name = required(line) or ''
      return name:match '^repl' or name:match '^recipes' or name:match '^tests'
    end))
  end)

  it('recipes and the prompt use the public API only', function()
    local paths = files('recipes', '.lua')
    for _, path in ipairs(files('repl', '.lua')) do paths[#paths + 1] = path end
    assert.equal('', offences(paths, function(line)
      local name = required(line)
      return name == 'lumoe.ffi' or name == 'lumoe.status' or name == 'ffi' and line:match 'cdef'
    end))
  end)

  it('keeps the memory that it gives to collectives until no message may touch it', function()
    local calls = { 'reduce', 'gather', 'gather_v', 'reduce_start', 'gather_start', 'gather_v_start', 'to_all_v', 'to_all_v_start' }
    assert.equal('', offences(files('lua', '.lua'), function(line)
      local wrong = line:find 'C%.lm_broadcast%(' or line:find 'C%.lm_reduce_scatter'
      for _, call in ipairs(calls) do wrong = wrong or line:find('C%.lm_all_' .. call .. '%(') end
      return wrong and not line:find 'checked%(C%.lm_' -- lumoe.dist.checked
    end))
  end)

  it('is all that its folders hold', function()
    local strays = {}
    for _, folder in ipairs { 'lua', 'recipes' } do
      for path in dir.dirtree(folder) do
        if not path_of.isdir(path) and path:sub(-4) ~= '.lua' then strays[#strays + 1] = path end
      end
    end
    assert.equal('', table.concat(strays, '\n'))
  end)

  it('passes luacheck', function()
    local folders = {}
    for _, folder in ipairs { 'lua', 'recipes', 'repl', 'tests' } do
      if path_of.isdir(folder) then folders[#folders + 1] = folder end
    end
    local _, code, out = utils.executeex('luacheck --no-color --quiet ' .. table.concat(folders, ' '))
    assert.equal(0, code, out)
  end)
end)

describe('the tree', function()
  it('names no absolute place of one machine', function()
    local paths = files('.', '.lua', '.c', '.h', '.cpp', '.sh', '.md', '.txt')
    local ours = {}
    for _, path in ipairs(paths) do
      if not path:match '^%./build' and not path:match '^%./%.git/' and not path:match 'includes_spec' then
        ours[#ours + 1] = path
      end
    end
    assert.equal('', offences(ours, function(line)
      return (' ' .. line):match '[%s"\'=(`]/home/%w' or (' ' .. line):match '[%s"\'=(`]/work/'
        or line:match '/root/' or line:match '%.%./shared'
    end))
  end)
end)
