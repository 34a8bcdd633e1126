--- Traces of routes: written, read, replayed, compared.
local lumoe = require 'lumoe'
local moe = lumoe.moe

local DIM, TOKENS, EXPERTS = 4, 12, 5

local function layer(seed, capacity)
  lumoe.manual_seed(seed)
  local made = moe.Layer { dim = DIM, experts = moe.FFN { experts = EXPERTS, hidden = 6 }, capacity = capacity,
    router = moe.routers.top_k { dim = DIM, top_k = 2 } }
  made:initialize()
  return made
end

local function batch()
  lumoe.manual_seed(8)
  local ids = {}
  for t = 1, TOKENS do ids[t] = (t * 7) % TOKENS + 100 end
  return lumoe.randn(TOKENS, DIM), { tokens = lumoe.tensor(ids, { dtype = 'i64' }) }
end

local function routes(plan)
  local list = {}
  for t = 0, TOKENS - 1 do
    for _, route in ipairs(plan:route_of(t)) do list[#list + 1] = route.expert .. (route.dropped and 'dropped' or '') end
  end
  return table.concat(list, ' ')
end

describe('a trace', function()
  it('is replayed by a layer that would choose otherwise, drops and all', function()
    local first, second = layer(1, { factor = 0.8 }), layer(2, { factor = 0.8 })
    local x, tags = batch()
    local trace = moe.trace()
    trace:record(first, x, tags)
    local want = routes(first.last_plan)
    assert.matches('dropped', want)
    second(x, tags)
    assert.not_equal(want, routes(second.last_plan))
    local replayed = moe.trace()
    replayed:record(trace.replay, trace, second, x, tags)
    assert.equal(want, routes(second.last_plan))
    assert.equal(trace:hash(), replayed:hash())
    assert.is_true(#trace.flips > 0)
  end)

  it('replays by token, in any order and in parts', function()
    local first = layer(1, { factor = 0.8 })
    local x, tags = batch()
    local trace = moe.trace()
    trace:record(first, x, tags)
    local want = first.last_plan
    local part = x[{ { 3, 5 } }]
    trace:replay(first, part, { tokens = tags.tokens[{ { 3, 5 } }] })
    assert.same(want:route_of(3)[1].expert, first.last_plan:route_of(0)[1].expert)
    assert.same(want:route_of(4)[2].expert, first.last_plan:route_of(1)[2].expert)
    assert.error_matches(function() trace:replay(first, part, { tokens = lumoe.tensor({ 1, 2 }, { dtype = 'i64' }) }) end,
      "call 1 of router 'router' saw no token 1")
    assert.error_matches(function()
      trace:replay(function()
        first(x, tags)
        first(x, tags)
      end)
    end, "no call 2 of router 'router'")
  end)

  it('leaves the gradients to the scores', function()
    local one = layer(1)
    local x, tags = batch()
    local trace = moe.trace()
    local function gradient(call)
      one:zero_grad()
      call(one, x, tags):square():sum():backward()
      return one.router.gate.weight.grad:flatten():totable()
    end
    local want = gradient(function(...) return (trace:record(...)) end)
    assert.same(want, gradient(function(...) return (trace:replay(...)) end))
  end)

  it('goes to a file and back, also in parts', function()
    local one = layer(1, { factor = 0.8 })
    local x, tags = batch()
    local whole, parts = moe.trace(), { moe.trace(), moe.trace() }
    whole:record(one, x, tags)
    for i, part in ipairs(parts) do -- as two ranks would have it
      local from, to = (i - 1) * 5, i == 1 and 5 or TOKENS
      part:record(whole.replay, whole, one, x[{ { from, to } }], { tokens = tags.tokens[{ { from, to } }] })
    end
    local a, b = os.tmpname(), os.tmpname()
    whole:save(a)
    assert.equal(whole:hash(), moe.trace.load(a):hash())
    for line in io.lines(a) do assert.matches('^router 1 5 %d+ %d%-? %d%-?$', line) end
    parts[1]:save(a)
    parts[2]:save(b)
    local joined = moe.trace.load(a, b)
    assert.equal(TOKENS, joined.layers.router[1].tokens)
    os.remove(a)
    os.remove(b)
  end)

  it('says which tokens would go elsewhere, and how near the scores were', function()
    local one = layer(1)
    local x, tags = batch()
    local trace, other = moe.trace(), moe.trace()
    trace:record(one, x, tags)
    trace:replay(one, x, tags)
    assert.same({}, trace.flips)
    local gate = one.router.gate.weight:detach()
    gate[0] = -gate[0]
    other:record(one, x, tags)
    assert.not_equal(trace:hash(), other:hash())
    trace:replay(one, x, tags)
    assert.is_true(#trace.flips > 0)
    for _, flip in ipairs(trace.flips) do
      local row = other.layers.router[1].row[flip.token]
      local scores = (x[row]):unsqueeze(0):linear(gate):softmax(-1):flatten()
      local widest = 0
      for slot = 0, 1 do
        local a, b = trace.layers.router[1].ids[2 * row + slot], other.layers.router[1].ids[2 * row + slot]
        widest = math.max(widest, math.abs(scores[a]:item() - scores[b]:item()))
      end
      assert.is_true(widest > 0)
      assert.near(widest, flip.gap, 1e-6)
      assert.same({ 'router', 1 }, { flip.path, flip.call })
    end
  end)
end)
