local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local file = require 'lumoe.checkpoint.file'
local folder = require 'tests.lua.checkpoint.folder'

local CHUNK = 2 ^ 20 -- runtime/file.c

describe('a file', function()
  it('comes back as it was written, over several chunks, with the sum of each part', function()
    folder.with(function(dir)
      local path, n = dir .. '/x', 2 * CHUNK + 12345
      local bytes = ffi.new('uint8_t[?]', n)
      for i = 0, n - 1 do bytes[i] = i * 7 + i / 251 end
      local f = file.create(path)
      assert.equal(0xcbf43926, f:write '123456789') -- the check value of CRC-32
      local sum = f:write(bytes, n)
      f:commit()

      f = file.open(path)
      assert.equal(n + 9, f.size)
      local back = ffi.new('uint8_t[?]', n)
      assert.equal(sum, f:read(9, n, back))
      assert.is_true(ffi.string(bytes, n) == ffi.string(back, n))
      assert.equal(sum, f:read(9, n, nil))
      assert.equal(0, f:read(5, 0, nil))
      f:close()
    end)
  end)

  it('that ends too soon says where', function()
    folder.with(function(dir)
      file.write_all(dir .. '/x', 'abc')
      local f = file.open(dir .. '/x')
      assert.error_matches(function() f:read(1, 3, nil) end, '/x: ends at byte 3; it is cut off')
    end)
  end)

  it('replaces another, and exchanges folders that have content', function()
    folder.with(function(dir)
      file.write_all(dir .. '/a', 'a')
      file.write_all(dir .. '/b', 'b')
      assert.is_false(file.replace(dir .. '/a', dir .. '/b'))
      assert.equal('a', file.read_all(dir .. '/b'))
      for _, name in ipairs { 'one', 'two' } do
        assert(require('lfs').mkdir(dir .. '/' .. name))
        file.write_all(dir .. '/' .. name .. '/x', name)
      end
      assert.is_true(file.replace(dir .. '/one', dir .. '/two'))
      assert.equal('one', file.read_all(dir .. '/two/x'))
      assert.equal('two', file.read_all(dir .. '/one/x'))
      assert.error_matches(function() file.replace(dir .. '/none', dir .. '/two') end,
        '/two: cannot take the name of .*/none: No such file')
      assert.error_matches(function() file.sync_dir(dir .. '/none') end, '/none: No such file')
    end)
  end)

  it('that meets no memory says so and leaks no descriptor', function()
    folder.with(function(dir)
      file.write_all(dir .. '/x', 'abc')
      local function descriptors()
        local n = 0
        for _ in require('lfs').dir '/proc/self/fd' do n = n + 1 end
        return n
      end
      local f, before = file.open(dir .. '/x'), descriptors()
      for _, act in ipairs { function() file.open(dir .. '/x') end, function() file.create(dir .. '/y') end,
        function() f:read(0, 3, nil) end } do
        C.lm_test_fail_alloc(1)
        local ok, message = pcall(act)
        C.lm_test_fail_alloc(0)
        assert.is_false(ok)
        assert.matches('no memory', message)
        assert.equal(before, descriptors())
      end
      for _ = 1, 3 do pcall(file.open, dir) end -- is a directory
      assert.equal(before, descriptors())
      assert.equal(3, f.size)
      f:close()
    end)
  end)
end)
