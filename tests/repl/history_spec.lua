local history = require 'repl.history'

describe('repl.history', function()
  local path

  before_each(function() path = os.tmpname() end)
  after_each(function() os.remove(path) end)

  local function read()
    local file = assert(io.open(path))
    local text = file:read '*a'
    file:close()
    return text
  end

  it('gives back what was appended, several lines in one entry', function()
    local chunk = 'for i = 1, 2 do\n\tprint(i)\n\n  x = "\\n"\nend'
    assert.is_true(history.append(path, 'x = 1'))
    assert.is_true(history.append(path, chunk))
    assert.same({ 'x = 1', chunk }, history.load(path))
  end)

  it('keeps the newest of equal entries', function()
    for _, entry in ipairs { 'a', 'b', 'a', 'c', 'a' } do history.append(path, entry) end
    assert.same({ 'b', 'c', 'a' }, history.load(path))
  end)

  it('keeps the newest within the limit and shortens the file', function()
    for i = 1, 20 do history.append(path, 'x = ' .. i) end
    assert.same({ 'x = 18', 'x = 19', 'x = 20' }, history.load(path, 3))
    assert.equal('x = 18\nx = 19\nx = 20\n', read())
  end)

  it('is empty where there is no file, and says why one cannot be written', function()
    os.remove(path)
    assert.same({}, history.load(path))
    local ok, message = history.append(path .. '/below', 'x')
    assert.is_nil(ok)
    assert.matches('below', message)
  end)
end)
