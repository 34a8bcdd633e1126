local region = require 'lumoe.checkpoint.region'

local random -- a small generator of its own, the same on every run
local function draw(n)
  random = (random * 1103515245 + 12345) % 2 ^ 31
  return math.floor(random / 2 ^ 31 * n)
end

-- Ranges of a dim, some of it, in any order.
local function some_ranges(size)
  local cuts, list = { 0, size }, {}
  for _ = 1, draw(4) do cuts[#cuts + 1] = draw(size + 1) end
  table.sort(cuts)
  for i = 1, #cuts - 1 do
    if cuts[i + 1] > cuts[i] and draw(3) > 0 then table.insert(list, 1 + draw(#list + 1), { cuts[i], cuts[i + 1] - cuts[i] }) end
  end
  return list
end

local function some_part(shape)
  local ranges = {}
  for d, size in ipairs(shape) do ranges[d] = draw(3) == 0 and { { 0, size } } or some_ranges(size) end
  local r = region.new(shape, draw(5) > 0 and ranges or nil)
  if draw(2) == 0 then
    local n = region.numel(r)
    local first = draw(n + 1)
    r.chunk = { first, draw(n - first + 1) }
  end
  return r
end

-- The elements of the whole in the order in which they lie in the part, one by one.
local function naive(r)
  local list = { 0 }
  for d, size in ipairs(r.shape) do
    local longer = {}
    for _, before in ipairs(list) do
      for _, range in ipairs(r.ranges and r.ranges[d] or { { 0, size } }) do
        for i = range[1], range[1] + range[2] - 1 do longer[#longer + 1] = before * size + i end
      end
    end
    list = longer
  end
  if not r.chunk then return list end
  return { unpack(list, r.chunk[1] + 1, r.chunk[1] + r.chunk[2]) }
end

describe('a part of a tensor', function()
  it('has the runs that a naive walk gives, and meets another where both have elements', function()
    random = 7
    for case = 1, 400 do
      local shape = {}
      for d = 1, 1 + draw(3) do shape[d] = 1 + draw(6) end
      local a, b = some_part(shape), some_part(shape)
      local in_a, in_b = naive(a), naive(b)
      assert.equal(#in_a, region.numel(a))
      assert.is_true(region.is_sound(a))

      local runs, seen, last = region.runs(a), 0, -1
      for i = 0, runs.count - 1 do
        assert.is_true(runs.first[i] > last)
        for k = 0, runs.length[i] - 1 do
          assert.equal(runs.first[i] + k, in_a[runs.at[i] + k + 1], 'case ' .. case)
          seen = seen + 1
        end
        last = runs.first[i] + runs.length[i] - 1
      end
      assert.equal(#in_a, seen)

      local common, there = 0, {}
      for _, e in ipairs(in_b) do there[e] = true end
      for _, e in ipairs(in_a) do common = common + (there[e] and 1 or 0) end
      region.common(runs, region.runs(b), function(at_a, at_b, length)
        for k = 1, length do
          assert.equal(in_a[at_a + k], in_b[at_b + k])
          common = common - 1
        end
      end)
      assert.equal(0, common)
    end
  end)

  it('names the first element that no part has', function()
    local shape = { 4, 6 }
    local left = region.new(shape, { { { 0, 4 } }, { { 0, 3 } } })
    local right = region.new(shape, { { { 0, 4 } }, { { 3, 3 } } })
    assert.equal(3, region.missing({ left }, shape))
    assert.is_nil(region.missing({ right, left }, shape))
    right.chunk = { 0, 11 }
    assert.equal(23, region.missing({ left, right }, shape))
    assert.equal(0, region.missing({}, shape))
    assert.is_nil(region.missing({}, { 0, 6 }))
  end)

  it('is written as one would slice it', function()
    local shape = { 8, 4, 6 }
    local all = { { { 0, 8 } }, { { 0, 4 } }, { { 0, 6 } } }
    assert.equal('', region.text(region.new(shape, all)))
    assert.equal('[4:8]', region.text(region.new(shape, { { { 4, 4 } }, all[2], all[3] })))
    assert.equal('[:,:,0:2+4:6]', region.text(region.new(shape, { all[1], all[2], { { 0, 2 }, { 4, 2 } } })))
    assert.equal('{10:30}', region.text(region.new(shape, nil, { 10, 20 })))
  end)

  it('is refused when it is none', function()
    local shape = { 4, 6 }
    for _, r in ipairs {
      { ranges = { { { 0, 4 } } } }, { ranges = { { { 0, 5 } }, { { 0, 6 } } } }, { ranges = 'all' },
      { ranges = { { { 0, 4 } }, { { 5, 2 } } } }, { ranges = { { { 0, 4 } }, { { 0.5, 2 } } } },
      { chunk = { 20, 5 } }, { chunk = { 0 } }, { ranges = { { { 0, 2 } }, { { 0, 6 } } }, chunk = { 0, 13 } },
    } do
      r.shape = shape
      assert.is_false(region.is_sound(r))
    end
  end)
end)
