--- One operation of ours, many times. The job: op (one of those below), recorded (for gradients) or not; and for those with
-- work to do dtype, and the time is that of forward and backward. A step has many calls, so that a turn is longer than what
-- threads take to wake and to find their data again.
local lumoe = require 'lumoe'
local serve = require 'tests.bench.programs.serve'

-- Tensors of 6 elements: what is left is the host's own work, a handle, headers, a node of the tape.
local function small(job)
  local grad = { requires_grad = job.recorded }
  local x, row, w = lumoe.ones({ 2, 3 }, grad), lumoe.ones(3), lumoe.ones({ 3, 3 }, grad)
  local ids = lumoe.tensor({ 0, 1, 1 }, { dtype = 'i64' })
  return {
    ['x + 1'] = function() return x + 1 end, ['x + x'] = function() return x + x end,
    ['x * row'] = function() return x * row end, relu = function() return x:relu() end,
    softmax = function() return x:softmax(-1) end, layer_norm = function() return x:layer_norm(row, row) end,
    sum = function() return x:sum(1) end, transpose = function() return x:transpose(0, 1) end,
    ['x[1]'] = function() return x[1] end, reshape = function() return x:reshape(3, 2) end,
    index_select = function() return x:index_select(1, ids) end, linear = function() return x:linear(w) end,
  }
end

-- In a model an activation has a gradient that goes on, in its own dtype, while a leaf's is kept, in f32: so it ends here.
local activation = lumoe.custom { forward = function(_, x) return x end, backward = function() end }

-- Sizes of a small model's layer. The four arrays of `wide + wide` have 16 MiB: with 32 they just fill a third-level cache,
-- and one program takes 0.2 or 0.7 ms by where its pages happen to lie.
local function large(job)
  local n = job.tiny and 16 or 1
  local function leaf(...)
    local t = lumoe.randn({ ... }, { dtype = job.dtype })
    t.requires_grad = true
    return t
  end
  local h, weight, bias = leaf(2048 / n, 256), leaf(1024 / n, 256), leaf(1024 / n)
  local wide, scale = leaf(1024 / n, 1024), leaf(256)
  local q, logits = leaf(32 / n, 4, 64, 64), leaf(1024 / n, 8000)
  local targets = lumoe.zeros({ 1024 / n }, { dtype = 'i64' })
  local tokens = (lumoe.rand(2048 / n) * 8000):long()
  local embeddings = leaf(8000, 256)
  return {
    linear = function() return activation(h):linear(weight, bias) end,
    add = function()
      local x = activation(wide)
      return x + x
    end,
    gelu = function() return activation(wide):gelu() end, swiglu = function() return activation(wide):swiglu() end,
    layer_norm = function() return activation(h):layer_norm(scale, scale) end,
    rms_norm = function() return activation(h):rms_norm(scale) end, softmax = function() return activation(wide):softmax(-1) end,
    attention = function()
      local x = activation(q)
      return x:attention(x, x, { causal = true })
    end,
    embedding = function() return embeddings:embedding(tokens) end,
    cross_entropy = function() return activation(logits):cross_entropy(targets) end,
  }, { weight, bias, scale, embeddings }
end

serve(function(job)
  if not job.dtype then
    local f, calls = small(job)[job.op], job.tiny and 200 or 20000
    return function()
      for _ = 1, calls / 100 do
        lumoe.scope(function() for _ = 1, 100 do f() end end)
      end
      return { calls = calls }
    end, {}
  end
  local ops, leaves = large(job)
  local f, calls, gradient = ops[job.op], job.tiny and 1 or 20, nil
  return function(lap)
    for _ = 1, calls do
      lumoe.scope(function()
        local y = f()
        lap 'forward'
        gradient = gradient or lumoe.keep(lumoe.ones(y:shape_table(), { dtype = y.dtype }))
        y:backward { grad = gradient }
      end)
      for _, t in ipairs(leaves) do t.grad = nil end
      lap 'backward'
    end
    return { calls = calls }
  end, {}
end)
