-- The statistics of few rows are kept only where gradients are recorded: the result is the same to the last bit.
local lumoe = require 'lumoe'

local function bits(x) return x:float():flatten():totable() end

describe('a norm that is not recorded', function()
  for _, rows in ipairs { 0, 1, 3, 64, 65 } do
    for _, dtype in ipairs { 'f32', 'bf16' } do
      it(('gives what a recorded one gives: %d rows, %s'):format(rows, dtype), function()
        local x, w, b = lumoe.randn({ rows, 7 }, { dtype = dtype }), lumoe.randn(7), lumoe.randn(7)
        local layer, rms = x:layer_norm(w, b, 1e-5), x:rms_norm(w, 1e-5)
        w.requires_grad = true -- alone, it is enough
        assert.is_true(x:layer_norm(w, b, 1e-5).requires_grad)
        assert.same(bits(x:layer_norm(w, b, 1e-5)), bits(layer))
        assert.same(bits(x:rms_norm(w, 1e-5)), bits(rms))
      end)
    end
  end

  it('saves nothing under no_grad, and backward of a recorded one still has its statistics', function()
    local x, w = lumoe.randn(3, 7), lumoe.randn({ 7 }, { requires_grad = true })
    local y = lumoe.no_grad(function() return x:layer_norm(w) end)
    assert.is_false(y.requires_grad)
    local dy = lumoe.randn(3, 7)
    x:layer_norm(w):backward { grad = dy }
    local mean = x:mean(-1, true)
    local centred = x - mean
    local xhat = centred / ((centred * centred):mean(-1, true) + 1e-5):sqrt()
    for i, want in ipairs(bits((dy * xhat):sum(0))) do assert.near(want, bits(w.grad)[i], 1e-4) end
  end)
end)
