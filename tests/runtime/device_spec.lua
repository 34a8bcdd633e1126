local utils = require 'pl.utils'

local lumoe = utils.quote_arg(os.getenv 'LUMOE' or arg[-1])

-- The bits of one gradient of a weight, after products of other sizes or none.
local function bits(before, repeatable)
  local script = ([[
    local lumoe, C = require 'lumoe', require 'lumoe.ffi'
    C.lm_set_repeatable(%d)
    local function gradient(rows)
      lumoe.manual_seed(1)
      local w = lumoe.randn(24, 40, { requires_grad = true })
      local x = lumoe.randn(rows, 40)
      x:linear(w):square():sum():backward()
      return w.grad
    end
    for _, rows in ipairs { %s } do gradient(rows) end
    local sum = 0
    for i, row in ipairs(gradient(333):totable()) do
      for j, value in ipairs(row) do sum = sum + value * ((i * 31 + j * 17) %% 101) end
    end
    io.write(('%%.17g'):format(sum))]]):format(repeatable, before)
  local _, _, out, errors = utils.executeex(('OMP_NUM_THREADS=1 %s -e %s'):format(lumoe, utils.quote_arg(script)))
  assert(tonumber(out), errors)
  return out
end

describe('lm_set_repeatable', function()
  it('makes a product the same, whatever was computed before', function()
    assert.equal(bits('', 1), bits('200, 201, 203, 205, 207', 1))
    assert.equal(bits('333, 334', 1), bits('200, 201, 203, 205, 207', 1))
  end)
  it('is needed: else later products of a kind are cut', function()
    assert.not_equal(bits('', 0), bits('200, 201, 203, 205, 207', 0))
  end)
end)
