local lumoe = require 'lumoe'

-- The largest |a - b| over the largest |b|.
local function apart(a, b) return (a - b):abs():max():item() / b:abs():max():item() end

describe('linear_cross_entropy', function()
  it('of many chunks of rows is linear and cross_entropy', function()
    lumoe.manual_seed(3)
    local rows, classes, dim = 1237, 301, 24 -- two whole chunks and a rest
    local targets = (lumoe.rand(rows) * classes):to 'i32'
    local options = { ignore_index = 7, label_smoothing = 0.1, reduction = 'sum' }
    local x, w = lumoe.randn(rows, dim, { requires_grad = true }), lumoe.randn(classes, dim, { requires_grad = true })
    local whole = x:linear(w):cross_entropy(targets, options)
    ;(whole * 0.5):backward()
    local dx, dw = x.grad:clone(), w.grad:clone()
    x.grad, w.grad = nil, nil
    options.reduction = nil
    local chunked = x:linear_cross_entropy(w, targets, options)
    ;(chunked * 0.5):backward()
    assert.is_true(math.abs(chunked:item() / whole:item() - 1) < 1e-6)
    assert.is_true(apart(x.grad, dx) < 1e-5)
    assert.is_true(apart(w.grad, dw) < 1e-5)
  end)

  it('keeps no logits', function()
    local x, w = lumoe.zeros({ 4096, 8 }, { requires_grad = true }), lumoe.zeros { 2000, 8 }
    local targets = lumoe.zeros({ 4096 }, { dtype = 'i32' })
    local before = lumoe.memory().live.total
    lumoe.reset_peak_memory()
    lumoe.scope(function() x:linear_cross_entropy(w, targets):backward() end)
    assert.is_true(lumoe.memory().peak.total - before < 4096 * 2000 * 4 / 4)
  end)
end)
