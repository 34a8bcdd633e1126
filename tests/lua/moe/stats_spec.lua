local ffi = require 'ffi'
local lumoe = require 'lumoe'
local stats = require 'lumoe.moe.stats'
local moe = lumoe.moe

describe('usage', function()
  local function usage(routed, dropped)
    return stats.usage(ffi.new('int64_t[?]', #routed, routed), ffi.new('int64_t[?]', #routed, dropped), #routed)
  end

  it('is even', function()
    local use = usage({ 5, 5, 5, 5 }, { 0, 0, 0, 0 })
    assert.same({ 5, 5, 5, 5 }, use.tokens_per_expert)
    assert.near(1, use.entropy, 1e-12)
    assert.equal(0, use.max_violation)
    assert.equal(0, use.mean_violation)
    assert.same({}, use.dead)
  end)

  it('has one expert, dead ones, and drops', function()
    local use = usage({ 8, 0, 0, 0 }, { 6, 0, 0, 0 })
    assert.equal(0, use.entropy)
    assert.equal(3, use.max_violation)
    assert.equal(1.5, use.mean_violation)
    assert.same({ 1, 2, 3 }, use.dead)
    assert.equal(0.75, use.drop_rate)
  end)

  it('is empty without being undefined', function()
    local use = usage({ 0, 0 }, { 0, 0 })
    assert.same({ 0, 0, 0, 0 }, { use.entropy, use.max_violation, use.drop_rate, use.routed })
    assert.same({ 0, 1 }, use.dead)
  end)
end)

describe('a layer', function()
  local choice
  local layer

  before_each(function()
    layer = moe.Layer { dim = 2, experts = moe.FFN { experts = 3, hidden = 2 }, capacity = { factor = 0.5, select = 'position' },
      router = moe.Router { route = function() return choice end } }
    choice = { scores = lumoe.full({ 4, 3 }, 1 / 3), expert_ids = lumoe.tensor({ { 0 }, { 0 }, { 2 }, { 0 } }, { dtype = 'i64' }) }
  end)

  local function tags()
    return { language = lumoe.tensor({ 7, 7, 7, 2 }, { dtype = 'i64' }), task = lumoe.tensor({ 0, 1, 0, 1 }, { dtype = 'u8' }),
      weight = lumoe.tensor { 0.5, 0.5, 0.5, 0.5 } }
  end

  it('counts every call, split by every tag of whole numbers', function()
    layer(lumoe.randn(4, 2), tags())
    layer(lumoe.randn(4, 2), tags())
    local use = layer:stats()
    assert.equal(8, use.tokens)
    assert.equal(2, use.calls)
    assert.same({ 6, 0, 2 }, use.tokens_per_expert) -- capacity is 1: the first token of an expert stays
    assert.equal(4, use.dropped)
    assert.same({ 1 }, use.dead)
    assert.same({ 4, 0, 2 }, use.by.language[7].tokens_per_expert)
    assert.equal(2, use.by.language[7].dropped)
    assert.same({ 2, 0, 0 }, use.by.language[2].tokens_per_expert)
    assert.equal(2, use.by.language[2].dropped)
    assert.is_nil(use.by.language[0])
    assert.same({ 4, 0, 0 }, use.by.task[1].tokens_per_expert)
    assert.is_nil(use.by.weight)
    assert.is_nil(use.by.valid)
  end)

  it('does not count padding', function()
    local t = tags()
    t.valid = lumoe.tensor({ 1, 0, 1, 0 }, { dtype = 'u8' })
    layer(lumoe.randn(4, 2), t)
    local use = layer:stats { reset = true }
    assert.equal(2, use.tokens)
    assert.same({ 1, 0, 1 }, use.tokens_per_expert)
    assert.is_nil(use.by.language[2])
    assert.equal(0, layer:stats().tokens)
  end)

  it('has a short form for the log', function()
    layer(lumoe.randn(4, 2), tags())
    local line = layer:summary()
    assert.same({ 3, 0, 1 }, line.load)
    assert.equal(2, line.dropped)
    assert.equal(1, line.dead)
    assert.near(0.5, line.drop_rate, 1e-12)
    layer:reset_stats()
    assert.equal(0, layer:summary().dropped)
  end)

  it('does not take a tag of thousands of values for a category', function()
    local t = tags()
    t.document = lumoe.tensor({ 0, 5000, 1, 2 }, { dtype = 'i64' })
    layer(lumoe.randn(4, 2), t)
    assert.is_nil(layer:stats().by.document)
  end)

  it('shows its last plan', function()
    layer(lumoe.randn(4, 2), tags())
    local plan = layer.last_plan
    assert.equal(1, plan.capacity)
    assert.same({ { expert = 0, dropped = false } }, plan:route_of(0))
    assert.same({ { expert = 0, dropped = true } }, plan:route_of(3))
    assert.same({ 2 }, plan:sends())
    assert.same({ 0, 1, 2 }, plan:local_experts())
    assert.matches('tokens per expert: 3 0 1', tostring(plan))
    assert.error_matches(function() plan:route_of(4) end, 'route_of: token 4 of 4')
  end)
end)
