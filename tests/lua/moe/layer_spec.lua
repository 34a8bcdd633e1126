local lumoe = require 'lumoe'
local naive = dofile 'tests/lua/moe/naive_layer.lua'
local moe, nn = lumoe.moe, lumoe.nn

local T, DIM, E, HIDDEN = 11, 6, 4, 5

local function fixture(opts)
  opts = opts or {}
  lumoe.manual_seed(opts.seed or 7)
  local layer = moe.Layer {
    dim = DIM, experts = moe.FFN { experts = E, hidden = HIDDEN, activation = opts.activation or 'silu', bias = opts.bias },
    router = opts.router or moe.routers.top_k { dim = DIM, top_k = opts.top_k or 2 },
    capacity = opts.capacity, normalize = opts.normalize, balance = opts.balance, owner = opts.owner,
  }
  layer:initialize()
  local x = lumoe.randn(T, DIM, { requires_grad = true })
  local valid = {}
  for t = 1, T do valid[t] = not opts.padding or t % 4 ~= 0 end
  return layer, x, valid
end

local function mask(valid)
  local m = {}
  for t, v in ipairs(valid) do m[t] = v and 1 or 0 end
  return lumoe.tensor(m, { dtype = 'u8' })
end

-- What was routed where, out of the plan.
local function routes(plan)
  local ids, kept = {}, {}
  for t = 0, plan.tokens - 1 do
    ids[t + 1], kept[t + 1] = {}, {}
    for s, route in ipairs(plan:route_of(t)) do
      if route.expert then
        ids[t + 1][s], kept[t + 1][s] = route.expert, not route.dropped
      end
    end
  end
  return ids, kept
end

local function numbers(layer)
  local p = { gate = layer.router.gate.weight:totable() }
  for _, name in ipairs { 'up', 'down', 'up_bias', 'down_bias' } do
    if layer.experts[name] ~= nil then p[name] = layer.experts[name]:detach():totable() end
  end
  return p
end

local function each_number(t, f)
  for i, v in ipairs(t) do
    if type(v) == 'table' then each_number(v, f) else f(t, i) end
  end
end

local function near_all(want, got, tolerance)
  assert.equal(#want, #got)
  for i, v in ipairs(want) do
    if type(v) == 'table' then near_all(v, got[i], tolerance)
    else assert.near(v, got[i], tolerance * (1 + math.abs(v))) end
  end
end

-- A loss with a different pull on every output.
local function loss_of(y)
  local sum = 0
  for t, row in ipairs(y) do
    for i, v in ipairs(row) do sum = sum + v * math.sin(t * 1.7 + i) + 0.5 * v * v end
  end
  return sum
end

local function pull()
  local rows = {}
  for t = 1, T do
    rows[t] = {}
    for i = 1, DIM do rows[t][i] = math.sin(t * 1.7 + i) end
  end
  return lumoe.tensor(rows)
end

local cases = {
  { name = 'top-2, weights over the chosen' },
  { name = 'top-1', top_k = 1 },
  { name = 'top-1 divided by itself', top_k = 1, normalize = 'chosen' },
  { name = 'all experts, weights as they are', top_k = E, normalize = false },
  { name = 'drops, weights over the kept', capacity = { factor = 0.5 }, normalize = 'kept', padding = true },
  { name = 'drops, weights over the chosen', capacity = { factor = 0.6, select = 'position' }, padding = true },
  { name = 'drops by probability', top_k = 3, capacity = { factor = 0.4, select = 'probability' } },
  { name = 'swiglu with biases', activation = 'swiglu', bias = true, padding = true },
  { name = 'gelu with biases', activation = 'gelu_tanh', bias = true },
  { name = 'relu', activation = 'relu' },
}

describe('the MoE layer', function()
  for _, case in ipairs(cases) do
    it('computes what a naive one does, and its gradients: ' .. case.name, function()
      local layer, x, valid = fixture(case)
      local y = layer(x, { valid = mask(valid) })
      local loss = (y * pull()):sum() + y:square():sum() * 0.5
      loss:backward()

      local p, xs = numbers(layer), x:detach():totable()
      local ids, kept = routes(layer.last_plan)
      local function forward()
        return naive.layer(p, xs, ids, kept, valid, layer.experts.activation, layer.normalize)
      end
      near_all((forward()), y:totable(), 2e-5)
      if case.capacity then assert.is_true(layer.last_plan:dropped() > 0) end

      -- Central differences of the naive one, in doubles.
      local function check(values, grad)
        local got, at = {}, 0
        each_number(grad:totable(), function(t, i) got[#got + 1] = t[i] end)
        each_number(values, function(t, i)
          local v, h = t[i], 1e-5
          t[i] = v + h
          local up = loss_of((forward()))
          t[i] = v - h
          local down = loss_of((forward()))
          t[i], at = v, at + 1
          assert.near((up - down) / (2 * h), got[at], 2e-4 * (1 + math.abs(got[at])))
        end)
      end
      check(xs, x.grad)
      check(p.gate, layer.router.gate.weight.grad)
      for _, name in ipairs { 'up', 'down', 'up_bias', 'down_bias' } do
        if p[name] then check(p[name], layer.experts[name].grad) end
      end
    end)
  end

  it('flattens leading sizes, and gives padding zeros', function()
    local layer = fixture()
    local x = lumoe.randn(2, 5, DIM)
    local y = layer(x, { valid = lumoe.tensor({ { 1, 1, 0, 0, 0 }, { 1, 1, 1, 1, 1 } }, { dtype = 'u8' }) })
    assert.same({ 2, 5, DIM }, y.shape)
    assert.equal(0, y[0][{ { 2, 5 } }]:abs():sum():item())
    assert.equal(7, layer.last_plan.valid_tokens)
    local alone = layer(x[1])
    assert.near(0, (alone - y[1]):abs():sum():item(), 1e-5)
  end)

  it('takes no tokens at all', function()
    local layer = fixture { balance = { moe.balance.load(1), moe.balance.z(1), moe.balance.importance(1) } }
    local x = lumoe.zeros(0, DIM, { requires_grad = true })
    local y, aux = layer(x)
    assert.same({ 0, DIM }, y.shape)
    local loss = y:sum() + aux
    loss:backward()
    assert.equal(loss:item(), loss:item()) -- no NaN
  end)

  it('runs in bf16, close to f32', function()
    local layer, x = fixture { activation = 'swiglu' }
    local want = layer(x)
    layer:to 'bf16'
    assert.equal('bf16', layer.experts.up.dtype)
    assert.equal('f32', layer.router.gate.weight.dtype)
    local y = layer(x:detach():to 'bf16')
    assert.equal('bf16', y.dtype)
    assert.near(0, (y:float() - want):abs():max():item(), 0.03)
    y:float():square():sum():backward()
    assert.equal('f32', layer.experts.up.grad.dtype)
  end)

  it('drops in training only, unless evaluation has a factor; then random becomes probability', function()
    local layer, x = fixture { capacity = { factor = 0.5 } }
    layer(x)
    assert.is_true(layer.last_plan:dropped() > 0)
    layer:eval()
    layer(x)
    assert.is_nil(layer.last_plan.capacity)

    layer = fixture { capacity = { eval_factor = 0.5 } }
    layer(x)
    assert.is_nil(layer.last_plan.capacity)
    layer:eval()
    layer(x)
    local first = layer.last_plan.hash
    lumoe.manual_seed(99) -- no draw is involved
    layer(x)
    assert.equal(first, layer.last_plan.hash)
    assert.is_true(layer.last_plan:dropped() > 0)
  end)

  it('drops other tokens in the next step, the same ones when it is repeated', function()
    local layer, x = fixture { capacity = { factor = 0.5 } }
    local random, hashes = require 'lumoe.random', {}
    for i, step in ipairs { 1, 2, 1 } do
      random.step(step)
      layer(x)
      hashes[i] = layer.last_plan.hash
    end
    assert.equal(hashes[1], hashes[3])
    assert.not_equal(hashes[1], hashes[2])
  end)

  it('takes priorities from a function', function()
    local layer, x = fixture { top_k = 1, capacity = { factor = 0.5, select = function(choice, tags)
      assert.same({ T, 1 }, choice.expert_ids.shape)
      return tags.tokens:float():unsqueeze(1) -- the last tokens first
    end } }
    layer(x)
    local plan, kept = layer.last_plan, {}
    for t = T - 1, 0, -1 do
      local route = plan:route_of(t)[1]
      kept[route.expert] = (kept[route.expert] or 0) + 1
      assert.equal(kept[route.expert] > plan.capacity, route.dropped)
    end
  end)

  it('lets a bias choose but not weigh', function()
    local layer, x = fixture { top_k = 1 }
    layer.router.bias:copy_(lumoe.tensor { 0, 0, 10, 0 })
    layer(x)
    assert.same({ 0, 0, T, 0 }, layer.last_plan:routed())
    local scores = naive.softmax({ 1, 2, 3, 4 })
    assert.is_true(scores[1] < 1) -- weights stay below 1: they come from the scores alone
    local _, all = naive.layer(numbers(layer), x:detach():totable(), (routes(layer.last_plan)), {}, {}, 'silu', false)
    local weights = layer.last_plan:weights(lumoe.tensor(all), false):totable()
    for t = 1, T do assert.near(all[t][3], weights[t][1], 1e-6) end
  end)

  it('leaks nothing, whichever allocation fails', function()
    local C = require 'lumoe.ffi'
    local layer, x = fixture { capacity = { factor = 0.5 }, balance = { moe.balance.load(1) }, bias = true }
    local function live()
      layer.last_plan, x.grad = nil, nil
      layer:zero_grad()
      collectgarbage()
      collectgarbage()
      return C.lm_memory_live(-1)
    end
    local function step()
      local y, aux = layer(x)
      local loss = y:square():sum() + aux
      loss:backward()
    end
    lumoe.scope(step)
    local before, failed = live(), 0
    for n = 1, 80, 3 do
      C.lm_test_fail_alloc(n)
      local ok, message = pcall(lumoe.scope, step)
      C.lm_test_fail_alloc(0)
      if not ok then
        assert.matches('no memory', message)
        failed = failed + 1
      end
      assert.equal(before, live())
    end
    assert.is_true(failed > 0)
  end)

  it('says so when x has another dim', function()
    local layer = fixture()
    assert.error_matches(function() layer(lumoe.zeros(3, DIM + 1)) end, 'x is %[3, 7%] f32, but dim is 6')
    assert.matches('layer_spec.lua:%d+: moe.Layer: x must be a tensor, not nil',
      select(2, pcall(function() layer(nil) end)))
  end)
end)

describe('a custom router', function()
  it('is what DESIGN.md promises: fields, symbolic sizes, tags', function()
    local by_language = moe.Router {
      gate = nn.Linear { DIM, moe.EXPERTS, bias = false },
      prefer = nn.Embedding { 3, moe.EXPERTS },
      route = function(self, x, tags)
        local scores = (self.gate(x) + self.prefer(tags.language)):softmax(-1)
        local _, expert_ids = (scores + self.bias:detach()):topk(2)
        return { scores = scores, expert_ids = expert_ids }
      end,
    }
    local layer = fixture { router = by_language }
    assert.same({ 3, E }, by_language.prefer.weight.shape)
    local x = lumoe.randn(2, 4, DIM)
    local y = layer(x, { language = lumoe.tensor({ 2, 0 }, { dtype = 'i64' }) }) -- one for each sequence
    y:square():sum():backward()
    local grad = by_language.prefer.weight.grad
    assert.is_true(grad[2]:abs():sum():item() > 0)
    assert.equal(0, grad[1]:abs():sum():item())
    local use = layer:stats()
    assert.equal(8, use.by.language[0].routed)
    assert.is_nil(use.by.language[1])
  end)

  local function faulty(route)
    local layer, x = fixture { router = moe.Router { route = route } }
    layer:named_paths()
    return select(2, pcall(layer, x))
  end
  local function fixed(ids, scores)
    return { expert_ids = ids, scores = scores or lumoe.full({ T, E }, 1 / E) }
  end
  local function some_ids(value)
    local ids = lumoe.zeros(T, 1, { dtype = 'i64' })
    ids[{ 4, 0 }] = value
    return ids
  end

  it('is told what it did wrong', function()
    assert.matches("router 'router': expert id 4, for token 4 in slot 0, is not one of 0 to 3",
      faulty(function() return fixed(some_ids(4)) end))
    assert.matches("router 'router': expert id %-2, for token 4", faulty(function() return fixed(some_ids(-2)) end))
    assert.matches("router 'router': the score of token 3 for expert 1 is NaN", faulty(function()
      local scores = lumoe.full({ T, E }, 0.25)
      scores[{ 3, 1 }] = 0 / 0
      return fixed(some_ids(0), scores)
    end))
    assert.matches('expert_ids are %[10, 1%] i64, but should be %[11, top_k%]',
      faulty(function() return fixed(lumoe.zeros(T - 1, 1, { dtype = 'i64' })) end))
    assert.matches('scores are %[11, 5%] f32, but there are 11 tokens and 4 experts',
      faulty(function() return fixed(some_ids(0), lumoe.zeros(T, 5)) end))
    assert.matches('expert_ids are %[11, 1%] f32', faulty(function() return fixed(lumoe.zeros(T, 1)) end))
    assert.matches('route returned nil, not a table', faulty(function() end))
    for _, route in ipairs {
      function() end,
      function() return fixed(lumoe.zeros(T, 1)) end,
      function() return fixed(some_ids(0), lumoe.zeros(T, 5)) end,
    } do
      local here = ("layer_spec.lua:%d: router 'router': "):format(debug.getinfo(route, 'S').linedefined)
      local message = faulty(route)
      assert.truthy(message:find(here, 1, true), message) -- where the user's function begins
    end
    assert.matches('layer_spec.lua:%d+: oh no', faulty(function() error 'oh no' end))
  end)

  it('may leave slots empty', function()
    local ids = lumoe.zeros(T, 2, { dtype = 'i32' })
    ids:fill_(-1)
    ids[{ 0, 1 }] = 3
    local layer, x = fixture { router = moe.Router { route = function() return fixed(ids) end } }
    local y = layer(x)
    assert.equal(1, layer.last_plan:routed()[4])
    assert.equal(0, y[{ { 1, T } }]:abs():sum():item())
    assert.is_true(y[0]:abs():sum():item() > 0)
  end)
end)

describe('options', function()
  local function message(change)
    local opts = { dim = DIM, experts = moe.FFN { experts = E, hidden = 3 }, router = moe.routers.switch { dim = DIM } }
    change(opts)
    return select(2, pcall(moe.Layer, opts))
  end
  it('that cannot be are errors with a name', function()
    assert.matches("unknown option 'capacty'", message(function(o) o.capacty = 1 end))
    assert.matches("option 'router' is missing", message(function(o) o.router = nil end))
    assert.matches('capacity.factor must be a number above 0', message(function(o) o.capacity = { factor = -1 } end))
    assert.matches("select must be 'random', 'position', 'probability' or a function",
      message(function(o) o.capacity = { factor = 1, select = 'best' } end))
    assert.matches("no exchange 'twice'; there are once, padded, rows, two_level",
      message(function(o) o.exchange = 'twice' end))
    assert.matches('exchange.parts must be a whole number from 1', message(function(o) o.exchange = { parts = 0 } end))
    assert.matches('exchange.shadow must be a number above 0', message(function(o) o.exchange = { shadow = -1 } end))
    assert.matches("exchange.way must be 'direct', 'padded' or 'two_level'",
      message(function(o) o.exchange = { way = 'far' } end))
    assert.matches("normalize must be 'chosen', 'kept' or false", message(function(o) o.normalize = 'all' end))
    assert.matches('balance%[1%] must be a function', message(function(o) o.balance = { 0.01 } end))
    assert.matches('balance must be a list of balancers', message(function(o) o.balance = moe.balance.load(0.01) end))
    assert.matches("balance is a list, and has no place 'load'",
      message(function(o) o.balance = { load = moe.balance.load(0.01) } end))
    assert.matches('layer_spec.lua:%d+: moe.Layer: router must be a moe.Router, not 3',
      message(function(o) o.router = 3 end))
    assert.matches('router must be a moe.Router, not a table', message(function(o) o.router = {} end))
    assert.matches('experts must be a moe.FFN, or a module like it, not 8', message(function(o) o.experts = 8 end))
    assert.matches('dim must be a whole number from 1, not 2.5', message(function(o) o.dim = 2.5 end))
    assert.matches('layer_spec.lua:%d+: moe.Layer: the router chooses top_k = 5 of 4 experts',
      message(function(o) o.router = moe.routers.top_k { dim = DIM, top_k = 5 } end))
    for _, name in ipairs { 'load', 'importance', 'z' } do
      assert.matches(('layer_spec.lua:%%d+: balance.%s: the weight must be a number, not nil'):format(name),
        select(2, pcall(function() return moe.balance[name](), nil end)))
    end
    for _, name in ipairs { 'top_k', 'noisy_top_k', 'switch' } do
      assert.matches(('layer_spec.lua:%%d+: %s router: option \'dim\' %%(a number%%) is missing'):format(name),
        select(2, pcall(function() return moe.routers[name] { top_k = name ~= 'switch' and 2 or nil } end)))
    end
    assert.matches("top_k router: option 'top_k' must be a whole number from 1, not 1.5",
      select(2, pcall(moe.routers.top_k, { dim = DIM, top_k = 1.5 })))
    assert.matches("no activation 'swish'", select(2, pcall(moe.FFN, { experts = 2, hidden = 2, activation = 'swish' })))
  end)
end)
