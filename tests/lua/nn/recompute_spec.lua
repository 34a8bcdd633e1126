--- Activation checkpointing: the same gradients to the bit, with everything random switched on.
local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'
local random = require 'lumoe.random'
local moe, nn = lumoe.moe, lumoe.nn

local DIM, BATCH, TIME, EXPERTS = 8, 3, 6, 5

local function experts(recompute)
  return moe.Layer {
    dim = DIM, experts = moe.FFN { experts = EXPERTS, hidden = 16, activation = 'swiglu', bias = true },
    router = moe.routers.noisy_top_k { dim = DIM, top_k = 2 }, capacity = { factor = 0.7 },
    balance = { moe.balance.load(0.05), moe.balance.z(0.01), moe.balance.importance(0.02) }, recompute = recompute,
  }
end

local Model = nn.class 'Model'
function Model:init(blocks, inner)
  self.embedding = nn.Embedding { 11, DIM }
  local function opts()
    return { dim = DIM, heads = 2, dropout = 0.3, rope = true, feed_forward = experts(inner), recompute = blocks }
  end
  self.encoder = { nn.TransformerEncoderLayer(opts()), nn.TransformerEncoderLayer(opts()) }
  self.decoder = nn.TransformerDecoderLayer(opts())
end
function Model:forward(ids, tags)
  local x, total = self.embedding(ids), 0
  for _, layer in ipairs(self.encoder) do
    local aux
    x, aux = layer(x, tags)
    total = aux + total
  end
  local y, aux = self.decoder(self.embedding(ids), tags, x, tags.valid)
  return y:square():sum() * 0.01 + total + aux
end

local function batch()
  local ids, valid, tokens = {}, {}, {}
  for b = 1, BATCH do
    ids[b], valid[b], tokens[b] = {}, {}, {}
    for t = 1, TIME do
      ids[b][t], valid[b][t], tokens[b][t] = (b * 5 + t * 3) % 11, t < 4 + b and 1 or 0, b * 100 + t
    end
  end
  return lumoe.tensor(ids, { dtype = 'i32' }),
    { valid = lumoe.tensor(valid, { dtype = 'u8' }), tokens = lumoe.tensor(tokens, { dtype = 'i64' }) }
end

-- Loss, gradients by name and statistics of two micro-batches in one step.
local function gradients(blocks, inner, dtype)
  lumoe.manual_seed(3)
  local model = Model(blocks, inner)
  model:initialize()
  if dtype then model:to(dtype) end
  random.step(7)
  local ids, tags = batch()
  local losses, grads = {}, {}
  for micro = 1, 2 do
    lumoe.scope(function()
      local loss = model(ids, tags)
      loss:backward()
      losses[micro] = loss:item()
    end)
  end
  for _, p in ipairs(model:named_parameters()) do grads[p.name] = p.tensor.grad:flatten():totable() end
  return losses, grads, model.encoder[1].feed_forward:stats(), random.state()
end

local function worst(want, got)
  local most, count = 0, 0
  for name, list in pairs(want) do
    for i, g in ipairs(list) do
      most, count = math.max(most, math.abs(g - got[name][i])), count + 1
    end
  end
  return most, count
end

describe('recompute', function()
  for _, case in ipairs {
    { 'a whole block', true, false }, { 'the experts', false, true }, { 'experts within a block', true, true },
  } do
    it('gives the very same gradients, draws and statistics: ' .. case[1], function()
      local losses, grads, stats, draws = gradients(false, false)
      local again, got, counted, drawn = gradients(case[2], case[3])
      assert.same(losses, again)
      local most, count = worst(grads, got)
      assert.equal(0, most)
      assert.is_true(count > 5000)
      assert.is_true(stats.dropped > 0)
      assert.same(stats, counted)
      assert.same(draws, drawn)
    end)
  end

  it('agrees in bf16', function()
    local losses, grads = gradients(false, false, 'bf16')
    local again, got = gradients(true, false, 'bf16')
    assert.same(losses, again)
    local norm = 0
    for _, list in pairs(grads) do for _, g in ipairs(list) do norm = norm + g * g end end
    assert.is_true((worst(grads, got)) < 1e-2 * math.sqrt(norm))
  end)

  it('keeps the plan: a router that changes its mind is not asked', function()
    local calls = 0
    local layer = moe.Layer { dim = 2, experts = moe.FFN { experts = 4, hidden = 3 }, router = moe.Router {
      gate = nn.Linear { 2, moe.EXPERTS, bias = false },
      route = function(self, x)
        calls = calls + 1
        local scores = self.gate(x):softmax(-1)
        return { scores = scores, expert_ids = lumoe.full({ x:size(0), 1 }, calls - 1, { dtype = 'i32' }) }
      end,
    } }
    layer:initialize()
    local x = lumoe.ones({ 3, 2 }, { requires_grad = true })
    local y = nn.recompute(layer, x)
    local plan = layer.last_plan
    y:sum():backward()
    assert.equal(2, calls)
    assert.equal(plan, layer.last_plan)
    local up = layer.experts.up.grad
    assert.is_true(up[0]:abs():sum():item() > 0)
    assert.equal(0, up[1]:abs():sum():item())
    assert.same({ 3, 0, 0, 0 }, layer:stats().tokens_per_expert)
  end)

  it('takes any function, and hands on what is no tensor', function()
    local x = lumoe.tensor({ 1, 2 }, { requires_grad = true })
    local w = lumoe.tensor({ 3, 4 }, { requires_grad = true })
    local a, n, b, none = nn.recompute(function(t, scale, nothing)
      assert.is_nil(nothing)
      return (t.x * t.w):sum() * scale, 5, t.x * 2, nil
    end, { x = x, w = w }, 10, nil)
    assert.equal(5, n)
    assert.is_nil(none)
    local loss = a + (b * lumoe.tensor { 100, 200 }):sum()
    loss:backward()
    assert.same({ 230, 440 }, x.grad:totable())
    assert.same({ 10, 20 }, w.grad:totable())
  end)

  it('teaches parameters where no argument needs a gradient, and is a plain call where nothing is recorded', function()
    local linear, calls = nn.Linear { 2, 1, bias = false }, 0
    local function f(x)
      calls = calls + 1
      return linear(x):sum()
    end
    nn.recompute(f, lumoe.tensor { { 5, 7 } }):backward()
    assert.same({ { 5, 7 } }, linear.weight.grad:totable())
    assert.equal(2, calls)
    lumoe.no_grad(function() nn.recompute(f, lumoe.ones(1, 2)) end)
    assert.equal(3, calls)
  end)

  it('goes through twice when the graph is retained', function()
    local x = lumoe.tensor({ 3 }, { requires_grad = true })
    local y = nn.recompute(function(v) return v * v end, x):sum()
    y:backward { retain_graph = true }
    y:backward()
    assert.same({ 12 }, x.grad:totable())
  end)

  it('says so when a function does something else the second time', function()
    local layer, calls = experts(), 0
    layer:initialize()
    local x = lumoe.ones({ 3, DIM }, { requires_grad = true })
    local y = nn.recompute(function(v)
      calls = calls + 1
      if calls == 2 then return layer((layer(v))) end
      return layer(v)
    end, x)
    assert.error_matches(function() y:sum():backward() end, "recompute: the function took another way")
  end)

  it('passes an error of the second time on, and leaves everything as it was', function()
    local x, calls = lumoe.tensor({ 3 }, { requires_grad = true }), 0
    local y = nn.recompute(function(v)
      calls = calls + 1
      if calls == 2 then error('a slip', 0) end
      return v * 2
    end, x):sum()
    local before = random.state()
    assert.error_matches(function() y:backward() end, 'a slip')
    assert.same(before, random.state())
    assert.is_true((x * 2).requires_grad) -- still recording
    assert.is_false(require('lumoe.nn.recompute').repeating())
  end)

  it('needs less memory, and gives back what it kept', function()
    local function peak(recompute)
      lumoe.manual_seed(1)
      local layers = {}
      for i = 1, 6 do
        layers[i] = nn.TransformerEncoderLayer { dim = 32, heads = 2, hidden = 128, recompute = recompute }
      end
      local x = lumoe.keep(lumoe.randn({ 8, 16, 32 }))
      local function step()
        lumoe.scope(function()
          local y = x
          for i = 1, 6 do y = layers[i](y) end
          y:square():sum():backward()
        end)
      end
      for _ = 1, 2 do -- what other specs have left goes
        step()
        collectgarbage()
        collectgarbage()
      end
      lumoe.reset_peak_memory()
      local before, objects = lumoe.memory().live.activations, C.lm_memory_objects()
      step()
      assert.equal(before, lumoe.memory().live.activations)
      assert.equal(objects, C.lm_memory_objects())
      return lumoe.memory().peak.activations - before
    end
    local without, with = peak(false), peak(true)
    assert.is_true(with < 0.4 * without, ('%d bytes, %d without'):format(with, without))
  end)
end)
