-- The cache of sequences that are being generated, and cached_attention, which reads and fills it. The reference is the
-- layer without a cache, over each sequence's whole history.
local lumoe = require 'lumoe'
local nn = lumoe.nn

local function numbers(x) return x:float():flatten():totable() end

local function near(want, have, tolerance)
  want, have = numbers(want), numbers(have)
  assert.equal(#want, #have)
  for i = 1, #want do assert.near(want[i], have[i], tolerance) end
end

local function ids(list) return lumoe.tensor(list, { dtype = 'i32' }) end

describe('nn.cache', function()
  before_each(function() lumoe.manual_seed(5) end)

  -- Steps of some positions each, with orders between them: { positions, order, positions, order, ... }.
  local function follow(case)
    local layer = nn.MultiheadAttention { case.dim, case.heads, rope = case.rope }
    if case.dtype == 'bf16' then layer:to 'bf16' end
    lumoe.no_grad(function()
      local cache, history, rows = { length = 0 }, nil, case.rows
      for _, step in ipairs(case) do
        if type(step) == 'table' then
          nn.cache.reorder(cache, ids(step))
          history, rows = history:index_select(0, ids(step)), #step
        else
          local x = lumoe.randn(rows, step, case.dim):to(case.dtype or 'f32')
          history = history and lumoe.cat({ history, x }, 1) or x
          local y, whole = layer(x, { cache = cache }), layer(history, { causal = true })
          near(whole:narrow(1, history:size(1) - step, step), y, case.dtype == 'bf16' and 0.03 or 1e-5)
          assert.equal(case.rows, cache.k:size(0)) -- nothing moves
        end
      end
      assert.equal(history:size(1), cache.length)
    end)
  end

  for _, case in ipairs {
    { 'from row to row', rows = 3, 1, { 2, 2, 0 }, 1, { 1, 0, 1 }, 1, 1, { 2, 1, 0 }, 1 },
    { 'with rotary positions', rope = true, rows = 3, 2, { 2, 2, 0 }, 1, { 1, 0, 1 }, 3, { 0, 0, 0 }, 1 },
    { 'past doublings of the room', rope = true, rows = 2, 5, { 1, 1 }, 20, { 1, 0 }, 1, 70, { 0, 0 }, 1, 1 },
    { 'when some end', rows = 6, 1, { 1, 2, 5, 3 }, 2, { 3, 0 }, 1, { 1 }, 1 },
    { 'when all end', rows = 2, 1, {}, 1, 12 },
    { 'with heads of an odd size', dim = 9, heads = 3, rows = 3, 4, { 2, 0, 0 }, 1, 9, { 1, 1, 2 }, 1 },
    { 'with one head of many numbers', dim = 34, heads = 1, rope = true, rows = 2, 1, { 1, 0 }, 1, { 1, 1 }, 17 },
    { 'in bf16', dtype = 'bf16', rope = true, rows = 3, 2, { 2, 2, 0 }, 1, { 1, 0, 1 }, 9, { 0, 0, 0 }, 1 },
  } do
    it('follows sequences ' .. case[1], function()
      table.remove(case, 1)
      case.dim, case.heads = case.dim or 8, case.heads or 2
      follow(case)
    end)
  end

  it('is of no rows where there are none', function()
    local layer, cache = nn.MultiheadAttention { 8, 2, rope = true }, { length = 0 }
    lumoe.no_grad(function()
      for _ = 1, 2 do assert.same({ 0, 1, 8 }, layer(lumoe.zeros(0, 1, 8), { cache = cache }):shape_table()) end
      nn.cache.reorder(cache, ids {})
      assert.same({ 0, 2, 8 }, layer(lumoe.zeros(0, 2, 8), { cache = cache }):shape_table())
    end)
  end)

  it('gives a row the same bits whatever the other rows and the threads', function()
    local k, v, qkv = lumoe.randn(16, 2, 90, 32), lumoe.randn(16, 2, 90, 32), lumoe.randn(16, 1, 192)
    local function first(rows, threads)
      local before = lumoe.threads()
      lumoe.threads(threads)
      local y = lumoe.no_grad(function()
        return qkv:narrow(0, 0, rows):cached_attention(k, v, nil, 2, 89, 0.2, 10000)
      end)
      lumoe.threads(before)
      return numbers(y:narrow(0, 0, 1))
    end
    local want = first(16, 1)
    assert.same(want, first(16, 2))
    assert.same(want, first(1, 1))
  end)

  it('says what is wrong', function()
    local qkv, k = lumoe.zeros(2, 1, 24), lumoe.zeros(2, 2, 4, 4)
    local function attend(...)
      local given = { ... }
      return function() return lumoe.no_grad(function() return given[1]:cached_attention(unpack(given, 2, 8)) end) end
    end
    attend(qkv, k, k:clone(), nil, 2, 3, 1, 0)()
    for _, case in ipairs {
      { attend(qkv, k, k:clone(), nil, 2, 4, 1, 0), 'cached_attention: qkv is %[2, 1, 24%] f32, .* positions from 4 on' },
      { attend(qkv, k, k:clone(), nil, 3, 0, 1, 0), 'cached_attention: .* H = 3' },
      { attend(qkv, k:narrow(0, 0, 1), k:narrow(0, 0, 1), nil, 2, 0, 1, 0), 'cached_attention: .*B or more' },
      { attend(qkv, k:to 'bf16', k:to 'bf16', nil, 2, 0, 1, 0), 'cached_attention: .*the same dtype' },
      { attend(qkv, k, k:transpose(2, 3), nil, 2, 0, 1, 0), 'cached_attention: a cache must be contiguous' },
      { attend(qkv, k, k:clone(), ids { { 0, 0 } }, 2, 1, 1, 0), 'cached_attention: rows is %[1, 2%] i32' },
      { attend(qkv, k, k:clone(), ids { { 0, 0 }, { 2, 0 } }, 2, 1, 1, 0), 'cached_attention: row 2 is not in 0 to 1' },
      { attend(lumoe.zeros(2, 1, 18), lumoe.zeros(2, 2, 4, 3), lumoe.zeros(2, 2, 4, 3), nil, 2, 0, 1, 10000),
        'cached_attention: rotary positions want an even dh' },
    } do assert.error_matches(case[1], case[2]) end
    local layer = nn.MultiheadAttention { 8, 2 }
    assert.error_matches(function() layer(lumoe.zeros(1, 1, 8), { cache = { length = 0 } }) end, 'has no gradient')
    local mask = lumoe.ones({ 1, 1 }, { dtype = 'u8' })
    assert.error_matches(function() layer(lumoe.zeros(1, 1, 8), { cache = { length = 0 }, key_mask = mask }) end, 'takes no key_mask')
  end)
end)
