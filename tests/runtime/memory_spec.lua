local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'

describe('memory', function()
  after_each(function() lumoe.memory_limit(0) end)

  it('is accounted for by purpose', function()
    lumoe.scope(function()
      local before = lumoe.memory()
      local w = lumoe.zeros(2 ^ 18)
      C.lm_tensor_set_purpose(require('lumoe.handle').pointer(w), C.LM_MEM_PARAMETERS)
      w.requires_grad = true
      w:sum():backward()
      local now = lumoe.memory()
      assert.equal(2 ^ 20, now.live.parameters - before.live.parameters)
      assert.equal(2 ^ 20, now.live.gradients - before.live.gradients)
      assert.is_true(now.live.total - before.live.total >= 2 ^ 21)
      local sum = 0
      for purpose, bytes in pairs(now.live) do if purpose ~= 'total' then sum = sum + bytes end end
      assert.equal(now.live.total, sum)
    end)
  end)

  it('knows its peak', function()
    lumoe.reset_peak_memory()
    local before = lumoe.memory().live.total
    lumoe.scope(function() local _ = lumoe.zeros(2 ^ 20) end)
    assert.is_true(lumoe.memory().peak.total >= before + 2 ^ 22)
    lumoe.reset_peak_memory()
    assert.equal(lumoe.memory().live.total, lumoe.memory().peak.total)
  end)

  it('has a limit, over which is an error that says how much', function()
    collectgarbage()
    collectgarbage()
    lumoe.memory_limit(lumoe.memory().live.total + 2 ^ 20)
    local ok, message = pcall(lumoe.zeros, 2 ^ 20)
    assert.is_false(ok)
    assert.matches('no memory: 4.2 MB asked, .* live of a limit of', message)
    lumoe.scope(function() assert.equal(1000, lumoe.zeros(1000):numel()) end)
    lumoe.memory_limit(0)
    lumoe.scope(function() assert.equal(2 ^ 20, lumoe.zeros(2 ^ 20):numel()) end)
  end)

  it('says small numbers of bytes as such', function()
    collectgarbage()
    collectgarbage()
    lumoe.memory_limit(1)
    local _, message = pcall(lumoe.zeros, 3)
    local _, more = pcall(lumoe.zeros, 10000)
    lumoe.memory_limit(0)
    assert.matches('no memory: 64 bytes asked, .* live of a limit of 1 bytes', message)
    assert.matches('no memory: 41.0 KB asked, ', more)
  end)

  it('takes no limit that is no number', function()
    assert.error_matches(function() lumoe.memory_limit 'a' end, 'memory_limit: wants a number of bytes, not a')
    assert.error_matches(function() lumoe.memory_limit(-1) end, 'memory_limit: wants a number of bytes, not %-1')
  end)

  it('over the limit is first looked for among what Lua has lost', function()
    collectgarbage()
    collectgarbage()
    lumoe.memory_limit(lumoe.memory().live.total + 3 * 2 ^ 20)
    local x = lumoe.ones(2 ^ 18)
    for _ = 1, 20 do local _ = x:exp() end -- each is garbage at once
    assert.is_true(lumoe.memory().live.total <= lumoe.memory().limit)
  end)

  it('is reused: a second step takes nothing from the system', function()
    local function step()
      lumoe.scope(function()
        local x = lumoe.zeros({ 300, 70 }, { requires_grad = true })
        ;(x:exp() * 2):sum():backward()
      end)
    end
    C.lm_memory_trim()
    step()
    local pooled = lumoe.memory().pooled
    step()
    assert.equal(pooled, lumoe.memory().pooled)
    C.lm_memory_trim()
    assert.equal(0, lumoe.memory().pooled)
  end)

  it('of every size comes and goes, aligned', function()
    local before = lumoe.memory().live.total
    lumoe.scope(function()
      for _, n in ipairs { 0, 1, 15, 16, 17, 31, 33, 100, 127, 129, 1000, 4095, 4097, 65537, 524287, 524288, 524289, 3e6 } do
        local x = lumoe.zeros(n)
        if n > 0 then
          assert.equal(0, tonumber(require('ffi').cast('uintptr_t', x:data_ptr()) % 64))
          x:fill_(n)
          assert.equal(n, x[n - 1]:item())
        end
        C.lm_memory_trim()
      end
    end)
    assert.equal(before, lumoe.memory().live.total)
  end)
end)
