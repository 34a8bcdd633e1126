local ffi = require 'ffi'
local lfs = require 'lfs'
local posix = require 'posix'
local complete = require 'repl.complete'

describe('repl.complete', function()
  local globals = {
    string = string,
    alpha = { beta = { gamma = 1, grow = function() end, _hidden = 1, ['no name'] = 1 }, list = { { inner = 1 } } },
    alphabet = 1,
    text = 'abc',
    loud = setmetatable({}, { __index = function() error 'no such field' end }),
    child = setmetatable({ own = 1 }, {
      __index = setmetatable({ base = 1 }, { __index = { root = function() end } }),
    }),
  }

  local function names(line)
    return (complete.complete(line, globals))
  end

  it('offers globals and keywords', function()
    assert.same({ 'alpha', 'alphabet' }, names 'x = al')
    assert.same({ 'return' }, names 'retu')
    assert.same({ 'string' }, names 'a..str')
  end)

  it('says what it replaces', function()
    local _, start = complete.complete('x = alpha.be', globals)
    assert.equal(#'x = alpha.', start)
    _, start = complete.complete('x = al', globals)
    assert.equal(#'x = ', start)
  end)

  it('follows fields, names in brackets and indices', function()
    assert.same({ 'beta' }, names 'print(alpha.b')
    assert.same({ 'gamma', 'grow' }, names 'alpha.beta.g')
    assert.same({ 'gamma', 'grow' }, names 'alpha["beta"].')
    assert.same({ 'inner' }, names 'alpha.list[1].')
    assert.same({ '_hidden' }, names 'alpha.beta._')
  end)

  it('offers only what can be called behind a colon', function()
    assert.same({ 'grow' }, names 'alpha.beta:g')
    assert.same({ 'rep', 'reverse' }, names 'text:re')
    assert.same({ 'rep', 'reverse' }, names '("%d"):re')
  end)

  it('follows __index', function()
    assert.same({ 'base', 'own', 'root' }, names 'child.')
    assert.same({ 'root' }, names 'child:')
  end)

  it('offers nothing where it would have to run the line, and survives errors', function()
    assert.same({}, names 'alpha().b')
    assert.same({}, names 'f(alpha):b')
    assert.same({}, names 'loud.x.y')
    assert.same({}, names 'missing.field.')
    assert.same({}, names '1.')
    assert.same({}, names 'x -- al')
    assert.same({}, names 'x = [[ al')
  end)

  it('knows the metatypes of cdata, behind pointers too', function()
    -- In a process of its own: busted puts a function of its own in the place of ffi.metatype.
    local script = os.tmpname()
    local file = assert(io.open(script, 'w'))
    file:write [[
      local ffi = require 'ffi'
      local complete = require('repl.complete').complete
      ffi.cdef 'typedef struct { int x; } point_t;'
      local point = ffi.metatype('point_t', { __index = { norm = function() end, scale = function() end } })
      local value = point(1)
      local globals = { value = value, pointer = ffi.new('point_t *', value), number = 1LL }
      for _, line in ipairs { 'value:', 'pointer:n', 'number:' } do
        io.write('[', table.concat(complete(line, globals), ' '), ']')
      end
    ]]
    file:close()
    local child = assert(io.popen(('"%s" "%s"'):format(posix.readlink '/proc/self/exe', script)))
    local output = child:read '*a'
    child:close()
    os.remove(script)
    assert.equal('[norm scale][norm][]', output)
  end)

  it('takes members from providers where __index is a function', function()
    ffi.cdef 'typedef struct { int x; } lumoe_complete_spec_opaque;'
    local opaque = ffi.metatype('lumoe_complete_spec_opaque', { __index = function() end })
    complete.provide(function(value) return ffi.istype(opaque, value) and { softmax = function() end } or nil end)
    globals.opaque = opaque()
    assert.same({ 'softmax' }, names 'opaque:s')
  end)

  describe('inside a string', function()
    local folder

    setup(function()
      folder = os.tmpname()
      os.remove(folder)
      assert(lfs.mkdir(folder))
      assert(lfs.mkdir(folder .. '/models'))
      for _, name in ipairs { 'a-b c.lua', 'model.json' } do assert(io.open(folder .. '/' .. name, 'w')):close() end
    end)

    teardown(function()
      os.remove(folder .. '/a-b c.lua')
      os.remove(folder .. '/model.json')
      lfs.rmdir(folder .. '/models')
      lfs.rmdir(folder)
    end)

    it('offers files and folders', function()
      local line = 'dofile("' .. folder .. '/m'
      local found, start, append = complete.complete(line, globals)
      assert.same({ 'model.json', 'models/' }, found)
      assert.equal(#line - 1, start)
      assert.is_nil(append)
    end)

    it('closes the string behind a file, not behind a folder', function()
      assert.equal('"', select(3, complete.complete('dofile("' .. folder .. '/a-', globals)))
      assert.equal("'", select(3, complete.complete("dofile '" .. folder .. '/model.', globals)))
      assert.is_nil(select(3, complete.complete('dofile("' .. folder .. '/models', globals)))
      assert.same({ 'a-b c.lua' }, names('x = "a\\"b" .. "' .. folder .. '/a-b '))
    end)

    it('offers modules behind require', function()
      assert.same({ 'repl.complete' }, names 'require "repl.comp')
      assert.same({ 'string', 'string.buffer' }, names "require('strin")
    end)
  end)
end)
