local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'

-- Tensors of many sizes, made and dropped in an order that draws from `seed`; each is filled with its number.
local function churn(seed, steps, sizes, check)
  math.randomseed(seed)
  local held = {}
  for i = 1, steps do
    local slot = math.random(40)
    if held[slot] then
      check(held[slot])
      held[slot].tensor:dispose()
    end
    local n = math.random(sizes)
    held[slot] = { tensor = lumoe.full({ n }, i, { dtype = 'i32' }), number = i, n = n }
  end
  for _, entry in pairs(held) do
    check(entry)
    entry.tensor:dispose()
  end
end

describe('arena', function()
  before_each(function()
    collectgarbage()
    collectgarbage()
    lumoe.reset_peak_memory()
  end)

  it('gives no two tensors the same bytes, small or large', function()
    for seed, sizes in ipairs { 2000, 20000, 300000 } do
      churn(seed, 600, sizes, function(entry)
        local p = require('ffi').cast('int32_t *', entry.tensor:data_ptr())
        for _, at in ipairs { 0, entry.n - 1, math.floor(entry.n / 2) } do assert.equal(entry.number, p[at]) end
      end)
    end
  end)

  it('is back where it was once all are dropped', function()
    local before = lumoe.memory().live.total
    churn(4, 300, 300000, function() end)
    assert.equal(before, lumoe.memory().live.total)
  end)

  it('does not pile up buffers of sizes that do not come again', function()
    C.lm_memory_trim()
    local live, idle = lumoe.memory().live.total, lumoe.memory().pooled
    for size = 100000, 300000, 500 do -- each larger than the last: no buffer is ever asked for again
      lumoe.scope(function()
        local _, _ = lumoe.zeros(size), lumoe.zeros(2 * size)
      end)
    end
    local largest = 3 * 300000 * 4
    assert.is_true(lumoe.memory().pooled - idle < 1.1 * largest)
    assert.is_true(lumoe.memory().peak.total - live < 1.1 * largest)
  end)

  it('gives free bytes back to the system when asked', function()
    lumoe.scope(function() lumoe.zeros(1000000) end)
    assert.is_true(lumoe.memory().pooled >= 4000000)
    C.lm_memory_trim()
    assert.equal(0, lumoe.memory().pooled)
    local again = lumoe.zeros(1000000)
    assert.equal(0, again:sum():item())
    again:dispose()
  end)

  it('keeps to a limit, and names it', function()
    lumoe.memory_limit(lumoe.memory().live.total + 1e6)
    local ok, message = pcall(lumoe.zeros, 1000000)
    lumoe.memory_limit(0)
    assert.is_false(ok)
    assert.matches('no memory: 4%.0 MB asked, .* of a limit', message)
    assert.has_no.errors(function() lumoe.zeros(1000000):dispose() end)
  end)

  it('refuses what no machine has', function()
    local ok, message = pcall(lumoe.empty, { 2 ^ 20, 2 ^ 20, 2 ^ 10 })
    assert.is_false(ok)
    assert.matches('no memory', message)
  end)
end)
