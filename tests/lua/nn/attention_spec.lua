local lumoe = require 'lumoe'
local naive = require 'tests.lua.nn.naive'
local nn = lumoe.nn
local numbers, near = naive.numbers, naive.near

local B, T, S, DIM, HEADS = 2, 5, 7, 8, 2

-- Biases start at zero; here they must show.
local function random_biases(m)
  lumoe.no_grad(function()
    for _, p in ipairs(m:named_parameters()) do
      if p.name:match 'bias$' then p.tensor:copy_(lumoe.randn(p.tensor:shape_table())) end
    end
  end)
  return m
end

local function project(rows, linear)
  local w, b, y = numbers(linear.weight), linear.bias ~= nil and numbers(linear.bias) or nil, {}
  for i, row in ipairs(rows) do y[i] = naive.linear(row, w, b) end
  return y
end

-- Columns [part · DIM, (part + 1) · DIM) of every row.
local function part(rows, n)
  local y = {}
  for i, row in ipairs(rows) do
    y[i] = {}
    for d = 1, DIM do y[i][d] = row[n * DIM + d] end
  end
  return y
end

-- may(b, i, j) counts from 1.
local function naive_layer(layer, x, memory, may)
  local out = {}
  for b, sentence in ipairs(numbers(x)) do
    local q, k, v
    if layer.cross then
      local both = project(numbers(memory)[b], layer.key_value)
      q, k, v = project(sentence, layer.query), part(both, 0), part(both, 1)
    else
      local all = project(sentence, layer.query_key_value)
      q, k, v = part(all, 0), part(all, 1), part(all, 2)
    end
    local seen = naive.attention(q, k, v, HEADS, function(i, j) return may(b, i, j) end, layer.rope)
    out[b] = project(seen, layer.output)
  end
  return out
end

local function any() return true end
local function causal(_, i, j) return j <= i end

describe('nn.MultiheadAttention', function()
  local x, memory
  before_each(function()
    lumoe.manual_seed(11)
    x, memory = lumoe.randn(B, T, DIM), lumoe.randn(B, S, DIM)
  end)

  for _, case in ipairs {
    { 'over itself', {}, {}, any },
    { 'without biases', { bias = false }, {}, any },
    { 'causal', {}, { causal = true }, causal },
    { 'with rotary positions', { rope = true }, {}, any },
    { 'causal with rotary positions', { rope = true }, { causal = true }, causal },
  } do
    it('attends ' .. case[1], function()
      local layer = random_biases(nn.MultiheadAttention { DIM, HEADS, bias = case[2].bias, rope = case[2].rope })
      near(naive_layer(layer, x, nil, case[4]), numbers(layer(x, case[3])), 1e-5)
    end)
  end

  it('does not see masked keys', function()
    local layer = random_biases(nn.MultiheadAttention { DIM, HEADS })
    local lengths = { 3, T }
    local mask = lumoe.tensor({ { 1, 1, 1, 0, 0 }, { 1, 1, 1, 1, 1 } }, { dtype = 'u8' })
    local function may(b, _, j) return j <= lengths[b] end
    near(naive_layer(layer, x, nil, may), numbers(layer(x, { key_mask = mask })), 1e-5)
    local function both(b, i, j) return j <= i and may(b, i, j) end
    near(naive_layer(layer, x, nil, both), numbers(layer(x, { key_mask = mask, causal = true })), 1e-5)
  end)

  it('attends to a memory, masked too', function()
    local layer = random_biases(nn.MultiheadAttention { DIM, HEADS, cross = true })
    near(naive_layer(layer, x, memory, any), numbers(layer(x, { memory = memory })), 1e-5)
    local mask = lumoe.tensor({ { 0, 1, 0, 1, 1, 1, 0 }, { 1, 0, 0, 0, 0, 0, 1 } }, { dtype = 'u8' })
    local seen = numbers(mask)
    near(naive_layer(layer, x, memory, function(b, _, j) return seen[b][j] == 1 end),
      numbers(layer(x, { memory = memory, key_mask = mask })), 1e-5)
  end)

  for _, rope in ipairs { false, true } do
    it(('with a cache, position by position, is the same as at once (rope %s)'):format(tostring(rope)), function()
      local long = lumoe.randn(B, 40, DIM) -- past two doublings of the cache
      local layer = random_biases(nn.MultiheadAttention { DIM, HEADS, rope = rope })
      local want, cache = numbers(layer(long, { causal = true })), { length = 0 }
      lumoe.no_grad(function()
        local at = 0
        for _, n in ipairs { 1, 1, 3, 1, 12, 1, 20, 1 } do -- some pieces at once, as a prompt would
          local y = numbers(layer(long:narrow(1, at, n), { causal = true, cache = cache }))
          for b = 1, B do
            for t = 1, n do near(want[b][at + t], y[b][t], 1e-5) end
          end
          at = at + n
        end
        assert.equal(40, at)
      end)
    end)
  end

  it('over a memory with a cache projects the memory once', function()
    local layer = random_biases(nn.MultiheadAttention { DIM, HEADS, cross = true })
    local want, cache = numbers(layer(x, { memory = memory })), {}
    lumoe.no_grad(function()
      for t = 0, T - 1 do
        local y = layer(x:narrow(1, t, 1), { memory = t == 0 and memory or nil, cache = cache })
        for b = 1, B do near(want[b][t + 1], numbers(y)[b][1], 1e-5) end
      end
    end)
  end)

  it('lets rows share a memory, with a cache and without', function()
    local layer = random_biases(nn.MultiheadAttention { DIM, HEADS, cross = true })
    local rows = lumoe.randn(3 * B, T, DIM)
    local mask = lumoe.tensor({ { 0, 1, 0, 1, 1, 1, 0 }, { 1, 0, 0, 0, 0, 0, 1 } }, { dtype = 'u8' })
    local third = lumoe.tensor({ 0, 0, 0, 1, 1, 1 }, { dtype = 'i32' }) -- the memory of each row
    local want = numbers(layer(rows, { memory = memory:index_select(0, third), key_mask = mask:index_select(0, third) }))
    near(want, numbers(layer(rows, { memory = memory, key_mask = mask })), 1e-5)
    lumoe.no_grad(function()
      local cache = {}
      for _ = 1, 2 do near(want, numbers(layer(rows, { memory = memory, key_mask = mask, cache = cache })), 1e-5) end
      assert.equal(B, cache.k:size(0))
    end)
    assert.error_matches(function() layer(lumoe.randn(3, T, DIM), { memory = memory }) end, '3 rows cannot share 2 memories')
  end)

  it('gives every parameter a gradient that central differences agree with', function()
    local layer = random_biases(nn.MultiheadAttention { DIM, HEADS, rope = true })
    local pull = lumoe.randn(B, T, DIM)
    local function loss() return (layer(x, { causal = true }) * pull):sum() end
    loss():backward()
    for _, p in ipairs(layer:named_parameters()) do
      local grad, flat = p.tensor.grad:flatten(), p.tensor:detach():reshape(-1)
      for _, at in ipairs { 0, 7, flat:numel() - 1 } do
        local h, was = 1e-2, flat:select(0, at):item()
        local function with(value)
          lumoe.no_grad(function() flat:narrow(0, at, 1):fill_(value) end)
          return loss():item()
        end
        local slope = (with(was + h) - with(was - h)) / (2 * h)
        with(was)
        assert.near(slope, grad:select(0, at):item(), 5e-3 * (1 + math.abs(slope)), p.name)
      end
    end
  end)
end)
