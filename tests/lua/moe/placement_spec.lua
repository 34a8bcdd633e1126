local placement = require 'lumoe.moe.policies.placement'

-- Counts of groups of experts that tokens go to together: e is of group e % groups; and some noise.
local function grouped(experts, groups, noise)
  local counts = placement.counts(experts)
  for e = 0, experts - 1 do
    counts.load[e] = 100 + 7 * (e * e % 5)
    for f = 0, experts - 1 do
      local w = (e % groups == f % groups and 50 or 0) + noise * ((e * f + e + f) % 7)
      if e ~= f then counts.together[e * experts + f] = w end
    end
  end
  return counts
end

local function random_counts(experts, random)
  local counts = placement.counts(experts)
  for e = 0, experts - 1 do
    counts.load[e] = random(1, 100)
    for f = 0, e - 1 do
      local w = random() < 0.5 and 0 or random(0, 50)
      counts.together[e * experts + f], counts.together[f * experts + e] = w, w
    end
  end
  return counts
end

local function saved(counts, owner, hosts, near)
  local cost = placement.cost(counts, owner, hosts)
  return -(1 - near) * cost.pairs_apart - near * cost.pairs_between_hosts
end

-- The best there is, by trying every map: at most `most` experts at a place, none busier than limit.
local function best(counts, places, hosts, most, limit, near)
  local owner, load, members, found = {}, {}, {}, -math.huge
  for p = 0, places - 1 do load[p], members[p] = 0, 0 end
  local function try(e)
    if e == counts.experts then
      found = math.max(found, saved(counts, owner, hosts, near))
      return
    end
    for p = 0, places - 1 do
      if members[p] < most and load[p] + counts.load[e] <= limit then
        owner[e + 1], load[p], members[p] = p, load[p] + counts.load[e], members[p] + 1
        try(e + 1)
        load[p], members[p] = load[p] - counts.load[e], members[p] - 1
      end
    end
  end
  try(0)
  return found
end

describe('the placement of experts', function()
  it('brings together what is used together, and groups that are nothing to each other anywhere', function()
    local counts = grouped(16, 4, 0)
    local owner = placement.place(counts, { places = 4 })
    assert.equal(0, placement.cost(counts, owner).pairs_apart)
    for e = 1, 16 do assert.equal(owner[(e - 1) % 4 + 1], owner[e]) end
  end)

  it('puts what does not fit at one place on one host', function()
    local counts, hosts = grouped(16, 2, 0), { 0, 1, 0, 1 }
    local owner = placement.place(counts, { places = 4, hosts = hosts })
    assert.equal(0, placement.cost(counts, owner, hosts).pairs_between_hosts)
  end)

  it('keeps within its limits, and comes close to the best map', function()
    math.randomseed(3)
    local all, most_off = 0, 0
    for _ = 1, 25 do
      local counts = random_counts(7, math.random)
      local hosts, near = { 0, 0, 1 }, 0.75
      local even = placement.cost(counts, placement.place(counts, { places = 3, slack = 0 }), hosts).busiest
      local owner = placement.place(counts, { places = 3, hosts = hosts, slack = 0.2 })
      local cost, members = placement.cost(counts, owner, hosts), {}
      for _, p in ipairs(owner) do members[p] = (members[p] or 0) + 1 end
      for p = 0, 2 do assert.is_true((members[p] or 0) <= 3) end
      local optimum = best(counts, 3, hosts, 3, math.max(cost.busiest, even), near)
      local off = optimum - saved(counts, owner, hosts, near)
      assert.is_true(off >= -1e-6)
      all, most_off = all + off / -optimum, math.max(most_off, off / -optimum)
    end
    assert.is_true(all / 25 < 0.05, ('on the average %g worse than the best'):format(all / 25))
    assert.is_true(most_off < 0.3, ('once %g worse than the best'):format(most_off))
  end)

  it('balances the busiest place against company', function()
    local counts = grouped(8, 1, 0) -- all belong together
    for e = 0, 7 do counts.load[e] = e == 0 and 400 or 100 end
    local owner = placement.place(counts, { places = 2, most = 8, slack = 0.05 })
    local cost = placement.cost(counts, owner)
    assert.is_true(cost.busiest <= 600 * 1.05)
  end)

  it('is the same each time, also for many experts', function()
    local counts = grouped(64, 8, 1)
    local o = { places = 8, hosts = { 0, 0, 0, 0, 1, 1, 1, 1 } }
    local owner = placement.place(counts, o)
    assert.same(owner, placement.place(counts, o))
    local blocks = {}
    for e = 0, 63 do blocks[e + 1] = math.floor(e / 8) end
    assert.is_true(placement.cost(counts, owner, o.hosts).pairs_apart < 0.7 * placement.cost(counts, blocks, o.hosts).pairs_apart)
  end)

  it('says what cannot be', function()
    local counts = placement.counts(8)
    assert.error_matches(function() placement.place(counts, { places = 2, most = 3 }) end,
      '2 places of at most 3 experts do not hold 8')
    assert.error_matches(function() placement.place(counts, { palces = 2 }) end, "no option 'palces'")
  end)
end)
