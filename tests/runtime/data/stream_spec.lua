local ffi = require 'ffi'
local lfs = require 'lfs'
local C = require 'lumoe.ffi'
local make_stream = require 'tests.runtime.data.make_stream'
local stream = require 'lumoe.data.stream'

local dir = os.tmpname()
os.remove(dir)
lfs.mkdir(dir)
teardown(function() os.execute('rm -r ' .. dir) end)

local function read(path)
  local file = assert(io.open(path, 'rb'))
  local content = file:read '*a'
  file:close()
  return content
end

local function fails_as(content, pattern)
  local path = dir .. '/bad'
  local file = assert(io.open(path, 'wb'))
  file:write(content)
  file:close()
  assert.error_matches(function()
    local s = stream.open(path)
    for i = 0, s.sentences - 1 do s:read(i) end
  end, 'bad: ' .. pattern)
end

describe('a token stream', function()
  for _, vocab in ipairs { 300, 65536, 65537, 250000 } do
    it('gives back what was written: vocabulary of ' .. vocab, function()
      local sentences = { { 0, vocab - 1, 5 }, {}, { 7 }, {} }
      local long = {}
      for i = 1, 10001 do long[i] = i * 31 % vocab end -- more than the writer narrows at once
      sentences[5] = long
      local s = make_stream(dir .. '/s', sentences, { vocab = vocab, model = 123 })
      assert.same({ 5, 3 + 1 + 10001, vocab }, { s.sentences, s.tokens, s.vocab })
      assert.equal('000000000000007b', s.hash)
      for i, ids in ipairs(sentences) do assert.same(ids, s:read(i - 1)) end
      local bytes = vocab > 65536 and 4 or 2
      assert.equal(64 + math.ceil(s.tokens * bytes / 8) * 8 + 6 * 8, #read(dir .. '/s'))
    end)
  end

  it('may be empty', function()
    local none = make_stream(dir .. '/none', {}, { vocab = 3 })
    assert.same({ 0, 0 }, { none.sentences, none.tokens })
  end)

  it('refuses sentences and ids it does not have', function()
    local s = make_stream(dir .. '/s', { { 1, 2 } }, { vocab = 3 })
    local _, message = pcall(function() s:read(1) end)
    assert.matches('stream_spec.lua:%d+: .*/s: sentence 1 of 1', message)
    assert.error_matches(function() s:read(-1) end, 'sentence %-1 of 1')
    local function refuses(id, pattern)
      assert.error_matches(function() make_stream(dir .. '/x', { { id } }, { vocab = 3 }) end, pattern)
    end
    refuses(3, 'id 3, but the vocabulary has 3')
    refuses(-1, 'id %-1')
    assert.is_nil(lfs.attributes(dir .. '/x'))
  end)

  it('has its name only when whole', function()
    local info, writer = ffi.new('lm_stream_info', { vocab = 9 }), ffi.new 'lm_stream_writer *[1]'
    assert.equal(0, C.lm_stream_create(dir .. '/late', info, writer))
    assert.is_nil(lfs.attributes(dir .. '/late'))
    assert.equal(0, C.lm_stream_finish(writer[0]))
    assert.is_table(lfs.attributes(dir .. '/late'))
    assert.equal(0, C.lm_stream_create(dir .. '/never', info, writer))
    C.lm_stream_abandon(writer[0])
    for name in lfs.dir(dir) do assert.is_nil(name:match '^never') end
  end)

  it('is refused by name when cut short, lengthened or foreign', function()
    make_stream(dir .. '/s', { { 1, 2 }, { 0, 1, 2 }, {} }, { vocab = 3 })
    local whole = read(dir .. '/s')
    for cut = 0, #whole - 1 do
      fails_as(whole:sub(1, cut), cut < 64 and 'not a token stream' or 'a damaged token stream')
    end
    fails_as(whole .. 'x', 'a damaged token stream')
    fails_as(('x'):rep(500), 'not a token stream')
    fails_as(whole:sub(1, 8) .. '\9' .. whole:sub(10), 'a token stream of version 9')
    assert.error_matches(function() stream.open(dir .. '/nowhere') end, 'nowhere: No such file')
    assert.error_matches(function() stream.open(dir) end, 'not a token stream')
    assert.error_matches(function() stream.open() end, 'wants a path, not a nil')
  end)

  it('is refused, or reads as some sentences, whatever byte is changed', function()
    make_stream(dir .. '/s', { { 1, 2 }, { 0, 1, 2 }, {} }, { vocab = 3 })
    local whole, refused = read(dir .. '/s'), 0
    for at = 1, #whole do
      for _, byte in ipairs { '\0', '\3', '\127', '\255' } do
        local file = assert(io.open(dir .. '/changed', 'wb'))
        file:write(whole:sub(1, at - 1), byte, whole:sub(at + 1))
        file:close()
        local ok, message = pcall(function()
          local s = stream.open(dir .. '/changed')
          for i = 0, s.sentences - 1 do
            for _, id in ipairs(s:read(i)) do assert(id >= 0 and id < s.vocab) end
          end
        end)
        if not ok then
          assert.matches('changed: ', message)
          refused = refused + 1
        end
      end
    end
    assert.is_true(refused > 100)
  end)
end)
