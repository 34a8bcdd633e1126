local workers = require 'lumoe.data.workers'

describe('workers', function()
  for _, jobs in ipairs { 1, 2, 5 } do
    it(('does every task once, with %d'):format(jobs), function()
      local results = {}
      workers.run {
        jobs = jobs, tasks = 40,
        work = function(i) return { square = i * i, text = ('line\n'):rep(i * 100) } end,
        done = function(i, result)
          assert.is_nil(results[i])
          results[i] = result
        end,
      }
      assert.equal(40, #results)
      for i = 1, 40 do
        assert.equal(i * i, results[i].square)
        assert.equal(i * 500, #results[i].text)
      end
    end)
  end

  it('raises the error of a worker', function()
    assert.error_matches(function()
      workers.run { jobs = 2, tasks = 8, work = function(i) if i == 3 then error('task three failed') end end, done = function() end }
    end, 'task three failed')
  end)

  it('says when a worker was killed', function()
    assert.error_matches(function()
      local function die() require('posix.signal').kill(require('posix.unistd').getpid(), 9) end
      workers.run { jobs = 2, tasks = 2, work = die, done = function() end }
    end, 'killed 9.; out of memory')
  end)
end)
