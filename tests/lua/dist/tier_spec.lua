local ffi = require 'ffi'
local lfs = require 'lfs'
local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'
local Tier = require 'lumoe.dist.tier'
local folder = require 'tests.lua.checkpoint.folder'

ffi.cdef 'int truncate(const char *path, long length);'

-- Names in a folder.
local function names(dir)
  local list = {}
  for name in lfs.dir(dir) do
    if name ~= '.' and name ~= '..' then list[#list + 1] = name end
  end
  return list
end

-- This process's descriptors: number -> what they lead to.
local function descriptors()
  local list = {}
  for fd in lfs.dir '/proc/self/fd' do
    local to = lfs.symlinkattributes('/proc/self/fd/' .. fd, 'target')
    if to then list[fd] = to end
  end
  return list
end

-- A script of its own, in a folder with room for little: returns what it said and its exit code.
local function run(dir, script, before)
  local path = dir .. '/../' .. dir:match '[^/]*$' .. '.lua'
  folder.write(path, script)
  local said, code = folder.lumoe(path .. ' ' .. dir, before)
  os.remove(path)
  return said, code
end

for _, mapped in ipairs { false, true } do
  describe(mapped and 'a mapped tier' or 'a tier', function()
    it('gives back what it was given, in any order of places, over many pieces', function()
      folder.with(function(dir)
        local tier = Tier.open(dir, mapped)
        local n, parts = 3 * 1024 * 1024 + 7, 9
        local big, small = lumoe.arange(n, { dtype = 'i32' }), {}
        local at = tier:reserve(4 * n)
        local other = tier:reserve(100 * parts)
        assert.equal(4 * n, other)
        tier:write(at, big)
        for i = parts, 1, -1 do
          small[i] = lumoe.full({ 25 }, i)
          tier:write(other + 100 * (i - 1), small[i])
        end
        local back, one = lumoe.zeros({ n }, { dtype = 'i32' }), lumoe.zeros(25)
        tier:read(at, back)
        tier:read(other + 300, one)
        tier:wait()
        assert.is_true(ffi.string(big:data_ptr(), 4 * n) == ffi.string(back:data_ptr(), 4 * n))
        assert.same(small[4]:totable(), one:totable())
        assert.same({ reserved = 4 * n + 900, written = 4 * n + 900, read = 4 * n + 100 }, tier:bytes())
        tier:close()
      end)
    end)

    it('reads what was begun to be written before, however long the queue is', function()
      folder.with(function(dir)
        local tier = Tier.open(dir, mapped)
        local at = tier:reserve(400)
        local from, to, seen = {}, {}, {}
        for i = 1, 200 do -- more than the queue holds
          from[i], to[i] = lumoe.full({ 100 }, i), lumoe.zeros(100)
          tier:write(at, from[i])
          seen[i] = tier:read(at, to[i])
        end
        assert.equal(400, seen[200])
        tier:wait(seen[70])
        assert.equal(70, to[70][99]:item())
        tier:wait()
        for i = 1, 200 do assert.equal(i, to[i][0]:item()) end
      end)
    end)

    it('starts as zeros, and moves nothing for nothing', function()
      folder.with(function(dir)
        local tier = Tier.open(dir, mapped)
        local at = tier:reserve(4000)
        local t = lumoe.ones(1000)
        tier:read(at, t)
        tier:write(at, lumoe.zeros(0))
        tier:wait()
        assert.equal(0, t:sum():item())
        assert.equal(0, tier:bytes().written)
        assert.equal(4000, tier:reserve(0))
      end)
    end)

    it('grows while it is written, wherever its pages end', function()
      folder.with(function(dir)
        local tier, list = Tier.open(dir, mapped), {}
        for i = 1, 50 do
          list[i] = { tier:reserve(4 * 997), lumoe.full({ 997 }, i) }
          tier:write(list[i][1], list[i][2])
        end
        for i = 1, 50 do
          local back = lumoe.zeros(997)
          tier:wait(tier:read(list[i][1], back))
          assert.equal(997 * i, back:sum():item())
        end
        tier:close()
      end)
    end)
  end)
end

describe('a tier', function()
  it('is opened once for a model and a directory', function()
    folder.with(function(dir)
      local open = Tier.opener()
      local tier = open(dir)
      assert.equal(tier, open(dir))
      assert.are_not.equal(tier, Tier.opener()(dir))
      assert.are_not.equal(tier, open(dir, true))
      assert.equal(open(dir, true), open(dir, true))
    end)
  end)

  it('has no name, closes its file, and is gone after kill -9', function()
    folder.with(function(dir)
      local tier = Tier.open(dir)
      tier:reserve(1e6)
      assert.same({}, names(dir))
      local function open() -- descriptors that lead into the folder
        local n = 0
        for _, to in pairs(descriptors()) do n = n + (to:find(dir, 1, true) and 1 or 0) end
        return n
      end
      assert.equal(1, open())
      tier:close()
      assert.equal(0, open())
      local said = run(dir, [[
        local tier = require('lumoe.dist.tier').open(arg[1])
        tier:write(tier:reserve(4e6), require('lumoe').ones(1e6))
        tier:wait()
        os.execute('kill -9 $PPID')]])
      assert.matches('exit 137', said)
      assert.same({}, names(dir))
    end)
  end)

  it('without room says so when it is reserved, with the directory and the bytes', function()
    folder.with(function(dir)
      local said, code = run(dir, [[
        local tier = require('lumoe.dist.tier').open(arg[1])
        tier:reserve(100000)
        local ok, message = pcall(tier.reserve, tier, 5e6)
        print(ok, message)
        print(tier:bytes().reserved, tier:reserve(1000))]], 'ulimit -f 1000;')
      assert.equal(0, code, said)
      assert.matches('false.*offload: no room for 5000000 bytes in a file in ' .. dir .. ', which has 100000: File too large', said)
      assert.matches('100000\t100000', said) -- and can go on
    end)
  end)

  it('on a full disk says so when it is reserved', function()
    folder.with(function(dir)
      local said, code = run(dir, [[
        local tier = require('lumoe.dist.tier').open(arg[1])
        tier:reserve(1e9)]], ('mount -t tmpfs -o size=1m tmpfs %s 2>/dev/null || { echo no tmpfs; exit; };'):format(dir))
      os.execute(('umount %s 2>/dev/null'):format(dir))
      if said:match 'no tmpfs' then return pending 'only root can mount a small disk' end
      assert.equal(1, code)
      assert.matches('offload: no room for 1000000000 bytes in a file in ' .. dir .. ', which has 0: No space left', said)
    end)
  end)

  it('that fails on the way says at which byte, and goes on saying it', function()
    folder.with(function(dir)
      local tier = Tier.open(dir)
      local at = tier:reserve(40000)
      local t = lumoe.zeros(10000)
      for fd, to in pairs(descriptors()) do -- somebody cuts the file off
        if to:find(dir, 1, true) then assert.equal(0, ffi.C.truncate('/proc/self/fd/' .. fd, 1000)) end
      end
      tier:read(at, t)
      local want = 'offload: cannot read 40000 bytes at byte 0 of a file in ' .. dir .. ': it is cut off there'
      assert.error_matches(function() tier:wait() end, want)
      assert.error_matches(function() tier:write(at, t) end, want)
      tier:close()
    end)
  end)

  it('whose write is cut short fails', function()
    folder.with(function(dir)
      local said, code = run(dir, [[
        local ffi = require 'ffi'
        ffi.cdef 'struct limit { unsigned long now, most; }; int setrlimit(int what, const struct limit *l);'
        local lumoe, tier = require 'lumoe', require('lumoe.dist.tier').open(arg[1])
        local at = tier:reserve(4e6)
        assert(ffi.C.setrlimit(1, ffi.new('struct limit', 1e6, 1e6)) == 0) -- RLIMIT_FSIZE
        tier:write(at, lumoe.ones(1e6))
        print(pcall(tier.wait, tier))]])
      assert.equal(0, code, said)
      assert.matches('false.*offload: cannot write 4000000 bytes at byte 0 of a file in ' .. dir .. ': File too large', said)
    end)
  end)

  it('mistakes are errors with a name', function()
    folder.with(function(dir)
      local tier = Tier.open(dir)
      tier:reserve(100)
      assert.error_matches(function() Tier.open(dir .. '/none') end,
        'offload: cannot make a file in ' .. dir .. '/none: No such file or directory')
      assert.error_matches(function() tier:write(4, lumoe.ones(25)) end,
        'offload: 100 bytes at byte 4, but 100 are reserved in a file in ' .. dir)
      assert.error_matches(function() tier:write(0, lumoe.ones(5, 5):t()) end, 'tier:write: the tensor must be contiguous')
      local before = C.lm_memory_objects()
      C.lm_test_fail_alloc(1)
      local ok, message = pcall(Tier.open, dir)
      C.lm_test_fail_alloc(0)
      assert.is_false(ok)
      assert.matches('offload: no memory', message)
      assert.equal(before, C.lm_memory_objects())
    end)
  end)
end)
