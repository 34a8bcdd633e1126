local ffi = require 'ffi'
local lumoe = require 'lumoe'
local checkpoint = require 'lumoe.checkpoint'
local folder = require 'tests.lua.checkpoint.folder'

local FIXTURES = 'tests/fixtures/safetensors/' -- made by the reference implementation: make.py

local function names(t)
  local list = {}
  for name in pairs(t) do list[#list + 1] = name end
  table.sort(list)
  return list
end

local function u64(n) return ffi.string(ffi.new('uint64_t[1]', n), 8) end

-- A file with this header and data, and the message that reading it gives.
local function message_for(text)
  local message
  folder.with(function(at)
    local path = at .. '/x.safetensors'
    folder.write(path, text)
    local ok, found = pcall(checkpoint.read, path)
    assert.is_false(ok, 'it was read')
    assert.truthy(found:find('safetensors_spec.lua', 1, true), found)
    assert.truthy(found:find('checkpoint.read: ' .. path .. ': ', 1, true), found)
    message = found:match ': (%f[%w\'][^/]*)$' or found
  end)
  return message
end

local function with_header(header, data) return u64(#header) .. header .. (data or '') end

describe('a file of the reference implementation', function()
  it('is read: every dtype, scalars, empty tensors, odd names, metadata', function()
    local t, metadata = checkpoint.read(FIXTURES .. 'basic.safetensors')
    assert.same({ 'bytes', 'empty', 'half', 'ids', 'long', 'odd "name"', 'scalar', 'weight' }, names(t))
    assert.same({ ['made by'] = 'make.py' }, metadata)
    assert.same({ { 0, 0.25, 0.5 }, { 0.75, 1, 1.25 } }, t.weight:totable())
    assert.equal('bf16', t.half.dtype)
    assert.same({ 1, -2.5 }, t.half[{ { 0, 2 } }]:totable())
    assert.near(3e38, t.half[2]:item(), 3e38 / 256)
    assert.same({ 1, -2, 2147483647 }, t.ids:totable())
    assert.same({ { -2 ^ 53 }, { 2 ^ 53 } }, t.long:totable())
    assert.same({ 0, 127, 255 }, t.bytes:totable())
    assert.equal(2.5, t.scalar:item())
    assert.same({ 0, 4 }, t.empty.shape)
  end)

  it('is written again byte for byte', function()
    folder.with(function(at)
      checkpoint.write(at .. '/again', checkpoint.read(FIXTURES .. 'basic.safetensors'), { ['made by'] = 'make.py' })
      assert.is_true(folder.read(FIXTURES .. 'basic.safetensors') == folder.read(at .. '/again'))
    end)
  end)

  it('of a dtype that Lumoe lacks is refused by name', function()
    assert.error_matches(function() checkpoint.read(FIXTURES .. 'half.safetensors') end,
      "half.safetensors: tensor 'h' is F16, which Lumoe has no dtype for")
  end)

  it('is found through a sharded index, or its folder', function()
    for _, path in ipairs { FIXTURES .. 'sharded', FIXTURES .. 'sharded/model.safetensors.index.json' } do
      local t = checkpoint.read(path)
      assert.same({ 'layer.bias', 'layer.weight' }, names(t))
      assert.same({ { 7, 7 }, { 7, 7 } }, t['layer.weight']:totable())
      assert.same({ 1, 2 }, t['layer.bias']:totable())
    end
  end)
end)

describe('write', function()
  it("takes views and a model's state, and gives the model back what it had", function()
    folder.with(function(at)
      local x = lumoe.arange(6):float():reshape(2, 3)
      checkpoint.write(at .. '/t', { t = x:t(), narrow = x:narrow(1, 1, 2) })
      local back = checkpoint.read(at .. '/t')
      assert.same({ { 0, 3 }, { 1, 4 }, { 2, 5 } }, back.t:totable())
      assert.same({ { 1, 2 }, { 4, 5 } }, back.narrow:totable())

      local a, b = lumoe.nn.Linear { 3, 2 }, lumoe.nn.Linear { 3, 2 }
      a.weight:detach():fill_(5)
      checkpoint.write(at .. '/state', a:state())
      b:load_state(checkpoint.read(at .. '/state'))
      assert.same(a.weight:totable(), b.weight:totable())
    end)
  end)

  it('refuses what is no tensor, at the line of the caller', function()
    local _, message = pcall(function() checkpoint.write('x', { a = 1 }) end)
    assert.matches('safetensors_spec.lua:%d+: checkpoint.write: wants a table name %-> tensor; %[a%] is a number', message)
    assert.error_matches(function() checkpoint.write('x', { lumoe.zeros(1) }) end, '%[1%]')
    assert.error_matches(function() checkpoint.write('x', {}, { a = 1 }) end, 'metadata must be texts')
    assert.error_matches(function() checkpoint.write(nil, {}) end, 'wants a path, not a nil')
  end)

  it('says what is wrong with the place, and leaves nothing there', function()
    folder.with(function(at)
      assert.error_matches(function() checkpoint.write(at .. '/none/x', {}) end, '/none/x%.part: No such file or directory')
      assert.error_matches(function() checkpoint.write(at, {}) end, 'Is a directory')
    end)
  end)

  it('fails on a full disk', function()
    assert.error_matches(function() -- 1 MiB, so that no buffer takes it
      require('lumoe.checkpoint.safetensors').write('/dev/full', { x = lumoe.zeros(2 ^ 18) })
    end, '/dev/full: cannot write: No space left on device')
  end)
end)

describe('read refuses', function()
  local GOOD = '{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
  local EIGHT = ('\0'):rep(8)

  it('nothing of a sound file', function()
    folder.with(function(at)
      folder.write(at .. '/x', with_header(GOOD, EIGHT))
      assert.same({ 0, 0 }, checkpoint.read(at .. '/x').x:totable())
    end)
  end)

  local cases = {
    { 'an empty file', '', 'has 0 bytes' },
    { 'a file cut in its length', '\1\0\0', 'has 3 bytes' },
    { 'a foreign file', ('PK\3\4 this is an archive, not tensors'):rep(5), 'no safetensors file: its header would have' },
    { 'a header longer than the file', u64(1000) .. GOOD, 'is cut off, or no safetensors file: its header would have 1000 bytes' },
    { 'a header beyond all sense', u64(2 ^ 52) .. GOOD, 'is no safetensors file' },
    { 'a header cut by one', u64(#GOOD - 1) .. GOOD .. EIGHT, 'header is not JSON' },
    { 'a header that is a number', with_header '17', 'header is not JSON: not a table' },
    { 'data cut by a byte', with_header(GOOD, EIGHT:sub(2)), 'is cut off: its header describes 8 bytes of data, the file has 7' },
    { 'a byte too many', with_header(GOOD, EIGHT .. 'x'), 'has 1 bytes behind its last tensor' },
    { 'a flipped dtype', with_header(GOOD:gsub('F32', 'I64'), EIGHT), "tensor 'x': holds 8 bytes, but [2] I64 is 16" },
    { 'an unknown dtype', with_header(GOOD:gsub('F32', 'F33'), EIGHT), "tensor 'x': has unknown dtype F33" },
    { 'a wrong shape', with_header(GOOD:gsub('%[2%]', '[3]'), EIGHT), 'holds 8 bytes, but [3] F32 is 12' },
    { 'a negative size', with_header(GOOD:gsub('%[2%]', '[-2]'), EIGHT), 'has size -2 in dim 0' },
    { 'half a size', with_header(GOOD:gsub('%[2%]', '[0.5]'), EIGHT), 'has size 0.5 in dim 0' },
    { 'no shape', with_header(GOOD:gsub('"shape":%[2%],', ''), EIGHT), 'has no shape' },
    { 'no offsets', with_header('{"x":{"dtype":"F32","shape":[2]}}', EIGHT), 'has no data_offsets' },
    { 'offsets in reverse', with_header(GOOD:gsub('%[0,8%]', '[8,0]'), EIGHT), 'begins at byte 8 and ends before' },
    { 'offsets out of the file', with_header(GOOD:gsub('%[0,8%]', '[8,16]'), EIGHT), 'nothing describes bytes 0 to 8' },
    { 'tensors over one another', with_header('{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":'
      .. '{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', EIGHT), "tensor 'y' begins at byte 4, inside another" },
    { 'a tensor that is a number', with_header('{"x":3}', ''), "tensor 'x': is described by a number" },
    { 'more dims than there are', with_header('{"x":{"dtype":"U8","shape":[1,1,1,1,1,1,1],"data_offsets":[0,1]}}', 'x'), 'at most 6 dims' },
  }
  for _, case in ipairs(cases) do
    it(case[1], function()
      if case[1]:match '^more dims' then
        assert.error_matches(function() message_for(case[2]) end, case[3])
        return
      end
      local message = message_for(case[2])
      assert.truthy(message:find(case[3], 1, true), message)
    end)
  end

  it('every cut of a sound file', function()
    local whole = folder.read(FIXTURES .. 'basic.safetensors')
    folder.with(function(at)
      for length = 0, #whole - 1, 3 do
        folder.write(at .. '/x', whole:sub(1, length))
        local ok, message = pcall(checkpoint.read, at .. '/x')
        assert.is_false(ok, length)
        assert.truthy(message:find(at .. '/x: ', 1, true), message)
      end
    end)
  end)

  it('a folder, a missing file, a device', function()
    folder.with(function(at)
      assert.error_matches(function() checkpoint.read(at) end, 'holds neither index.json nor model.safetensors')
      assert.error_matches(function() checkpoint.read(at .. '/none') end, '/none: No such file or directory')
      assert.error_matches(function() require('lumoe.checkpoint.safetensors').open(at) end, 'is a directory, not a file')
      assert.error_matches(function() checkpoint.read '/dev/zero' end, '/dev/zero: is not an ordinary file')
    end)
  end)

  it('an index that leads out of its folder, or to nothing', function()
    folder.with(function(at)
      local function index(map)
        folder.write(at .. '/model.safetensors.index.json', ('{"weight_map":{"x":%s}}'):format(map))
        return select(2, pcall(checkpoint.read, at))
      end
      assert.matches("names '../x', which is not a file beside it", index '"../x"')
      assert.matches('/x: No such file', index '"x"')
      assert.matches("tensor 'x' has no file", index '3')
      folder.write(at .. '/y', with_header '{}')
      assert.matches("tensor 'x' is not in .*/y", index '"y"')
      folder.write(at .. '/model.safetensors.index.json', '{"weight_map":')
      assert.error_matches(function() checkpoint.read(at) end, 'index.json: is corrupt')
    end)
  end)
end)
