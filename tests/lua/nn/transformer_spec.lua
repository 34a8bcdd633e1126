local lumoe = require 'lumoe'
local naive = require 'tests.lua.nn.naive'
local nn, moe = lumoe.nn, lumoe.moe
local numbers, near = naive.numbers, naive.near

local B, T, S, DIM = 2, 6, 5, 8

local function mask(lengths, longest)
  local rows = {}
  for b, n in ipairs(lengths) do
    rows[b] = {}
    for t = 1, longest do rows[b][t] = t <= n and 1 or 0 end
  end
  return lumoe.tensor(rows, { dtype = 'u8' })
end

-- Rows that hold tokens; what a layer makes of padding is nobody's business.
local function real(x, lengths)
  local rows = {}
  for b, n in ipairs(lengths) do
    for t = 1, n do rows[#rows + 1] = numbers(x)[b][t] end
  end
  return rows
end

describe('Transformer layers', function()
  local x, memory
  before_each(function()
    lumoe.manual_seed(5)
    x, memory = lumoe.randn(B, T, DIM), lumoe.randn(B, S, DIM)
  end)

  for _, norm in ipairs { 'layer', 'rms' } do
    it(('encode: x + part(norm(x)) for each part (%s)'):format(norm), function()
      local layer = nn.TransformerEncoderLayer { dim = DIM, heads = 2, hidden = 12, norm = norm, activation = 'silu' }
      local valid = mask({ 4, T }, T)
      local y, aux = layer(x, { valid = valid })
      local h = x + layer.self_attention(layer.norm_self(x), { key_mask = valid })
      near(numbers(h + layer.feed_forward(layer.norm_feed_forward(h))), numbers(y), 1e-6)
      assert.is_nil(aux)
    end)
  end

  it('decode: over itself, over the memory, then forward', function()
    local layer = nn.TransformerDecoderLayer { dim = DIM, heads = 2, hidden = 12, rope = true }
    local valid = mask({ 2, S }, S)
    local y = layer(x, nil, memory, valid)
    local h = x + layer.self_attention(layer.norm_self(x), { causal = true })
    h = h + layer.cross_attention(layer.norm_cross(h), { memory = memory, key_mask = valid })
    near(numbers(h + layer.feed_forward(layer.norm_feed_forward(h))), numbers(y), 1e-6)
  end)

  it('decode with a cache what they decode at once', function()
    local layer = nn.TransformerDecoderLayer { dim = DIM, heads = 2, hidden = 12, rope = true }
    local valid = mask({ 2, S }, S)
    local want, cache = numbers(layer(x, nil, memory, valid)), {}
    lumoe.no_grad(function()
      for t = 0, T - 1 do
        local y = numbers(layer(x:narrow(1, t, 1), nil, memory, valid, cache))
        for b = 1, B do near(want[b][t + 1], y[b][1], 1e-5) end
      end
    end)
  end)

  it('do not look ahead nor at padding', function()
    local encoder = nn.TransformerEncoderLayer { dim = DIM, heads = 2, hidden = 12 }
    local decoder = nn.TransformerDecoderLayer { dim = DIM, heads = 2, hidden = 12 }
    local lengths = { 3, T }
    local valid, seen = mask(lengths, T), mask({ 2, S }, S)
    local noise = lumoe.randn(B, T, DIM) * (1 - valid:float()):unsqueeze(2)
    local memory_noise = lumoe.randn(B, S, DIM) * (1 - seen:float()):unsqueeze(2)
    near(real(encoder(x, { valid = valid }), lengths), real(encoder(x + noise, { valid = valid }), lengths), 1e-6)
    near(real(decoder(x, { valid = valid }, memory, seen), lengths),
      real(decoder(x + noise, { valid = valid }, memory + memory_noise, seen), lengths), 1e-6)
    local later = x:clone()
    lumoe.no_grad(function() later:narrow(1, 4, 2):fill_(9) end)
    near(numbers(decoder(x, nil, memory, seen):narrow(1, 0, 4)), numbers(decoder(later, nil, memory, seen):narrow(1, 0, 4)),
      1e-6)
  end)

  it('take any module for the feed-forward part, and pass on its loss and tags', function()
    local tags_seen
    local Part = nn.class 'Part'
    function Part:init() nn.parameter(self, 'weight', { DIM }, { init = 'ones' }) end
    function Part:forward(h, tags)
      tags_seen = tags
      return h * self.weight * 2, lumoe.tensor(7)
    end
    local layer = nn.TransformerEncoderLayer { dim = DIM, heads = 2, feed_forward = Part() }
    local tags = { valid = mask({ T, T }, T) }
    local y, aux = layer(x, tags)
    local h = x + layer.self_attention(layer.norm_self(x))
    near(numbers(h + layer.norm_feed_forward(h) * 2), numbers(y), 1e-6)
    assert.equal(7, aux:item())
    assert.equal(tags, tags_seen)
  end)

  it('take a MoE layer; padding changes nothing', function()
    local function build()
      return nn.TransformerEncoderLayer { dim = DIM, heads = 2, dropout = 0.3, feed_forward = moe.Layer {
        dim = DIM, experts = moe.FFN { experts = 4, hidden = 6 }, router = moe.routers.noisy_top_k { dim = DIM, top_k = 2 },
        capacity = { factor = 0.75 }, balance = { moe.balance.load(0.1) } } }:initialize()
    end
    local layer = build()
    local lengths = { 3, T }
    local function run(longest)
      require('lumoe.random').step(1)
      local position = lumoe.arange(longest)
      local tags = { valid = mask(lengths, longest), tokens = lumoe.tensor({ { 100 }, { 200 } }, { dtype = 'i64' }) + position }
      local input = lumoe.zeros(B, longest, DIM)
      input:narrow(1, 0, T):copy_(x)
      local y, aux = layer(input, tags)
      return real(y, lengths), aux:item(), layer.feed_forward.last_plan:dropped()
    end
    local short, aux_short, dropped_short = run(T)
    local long, aux_long, dropped_long = run(T + 7)
    near(short, long, 1e-6)
    assert.near(aux_short, aux_long, 1e-7)
    assert.is_true(dropped_short > 0)
    assert.equal(dropped_short, dropped_long)
  end)

  it('drop out each part in training only', function()
    local layer = nn.TransformerEncoderLayer { dim = DIM, heads = 2, hidden = 12, dropout = 0.5 }:named_paths()
    local a, b = numbers(layer(x)), numbers(layer(x))
    assert.is_false(pcall(near, a, b, 1e-6))
    layer:eval()
    near(numbers(layer(x)), numbers(layer(x)), 0)
  end)
end)
