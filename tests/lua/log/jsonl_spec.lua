local log = require 'lumoe.log'

describe('jsonl', function()
  local path
  before_each(function() path = os.tmpname() end)
  after_each(function() os.remove(path) end)

  local function raw(text)
    local file = assert(io.open(path, 'w'))
    file:write(text)
    file:close()
  end

  local function steps()
    local list = {}
    for i, record in ipairs(log.read_jsonl(path)) do list[i] = record.step or 'none' end
    return list
  end

  it('has each record on disk when write returns', function()
    local out = log.jsonl(path)
    for step = 1, 3 do
      out:write { step = step, loss = 1 / step, load = { 1, 2, 3 } }
      assert.equal(step, #log.read_jsonl(path))
    end
    out:close()
    assert.same({ step = 2, loss = 0.5, load = { 1, 2, 3 } }, log.read_jsonl(path)[2])
  end)

  it('starts anew without resume_step', function()
    raw '{"step":1}\n'
    log.jsonl(path):close()
    assert.same({}, steps())
  end)

  it('resumes after the given step, byte for byte, and drops the torn line of a kill', function()
    raw '{"config":true}\n{"step":1,"loss":0.12345678901234567}\n{"step":2}\n{"step":3}\n{"step":4,"lo'
    local out = log.jsonl(path, { resume_step = 2 })
    out:write { step = 3, loss = 7 }
    out:close()
    assert.same({ 'none', 1, 2, 3 }, steps())
    local file = assert(io.open(path))
    assert.equal('{"config":true}\n{"step":1,"loss":0.12345678901234567}\n', file:read '*a':sub(1, 54))
    file:close()
  end)

  it('resumes where there is nothing yet', function()
    os.remove(path)
    local out = log.jsonl(path, { resume_step = 5 })
    out:write { step = 6 }
    out:close()
    assert.same({ 6 }, steps())
  end)

  it('writes NaN and infinity as null', function()
    local out = log.jsonl(path)
    out:write { step = 1, loss = 0 / 0, norm = math.huge }
    out:close()
    local record = log.read_jsonl(path)[1]
    assert.equal(1, record.step)
    assert.is_true(type(record.loss) ~= 'number')
  end)

  it('names the line that is not JSON', function()
    raw '{"step":1}\n{"step":\n{"step":3}\n'
    assert.error_matches(function() log.read_jsonl(path) end, 'jsonl: .*:2: not a JSON object')
  end)

  it('refuses unknown options and paths', function()
    assert.error_matches(function() log.jsonl(path, { resume = 3 }) end,
      "no option 'resume'; there are: resume_step")
    assert.error_matches(function() log.jsonl(path .. '/x') end, 'jsonl: .*Not a directory')
  end)
end)
