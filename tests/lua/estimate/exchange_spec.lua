--- Closed forms of routing and of the ways of an exchange, beside counting token by token and hop by hop.
local all_sets = require 'recipes.estimate.sets'
local exchange = require 'lumoe.estimate.exchange'
local lumoe = require 'lumoe'
local layout = require 'lumoe.estimate.layout'
local description = require 'lumoe.estimate.description'

local DIM, BYTES = 16, 4

local function model(opts)
  local m = { dim = DIM, experts = 8, top_k = 2, capacity = 0 }
  for key, value in pairs(opts) do m[key] = value end
  return description.model(m)
end

describe('routing', function()
  local function share_of(sets, f)
    local sum = 0
    for _, set in ipairs(sets) do sum = sum + f(set) end
    return sum / #sets
  end

  for _, case in ipairs { { k = 1 }, { k = 2 }, { k = 3 }, { k = 2, popularity = { 3, 1, 1, 2, 1, 1, 1, 4 } },
    { k = 3, popularity = { 1, 1, 5, 1, 1, 2, 1, 1 } } } do
    it(('counts as all sets of %d%s do'):format(case.k, case.popularity and ', some more popular' or ''), function()
      local r = exchange.routing(model { top_k = case.k, popularity = case.popularity }, 3)
      local sets = all_sets(8, case.k, case.popularity)
      for first = 0, 7 do
        for last = first + 1, 8 do
          local function inside(set)
            local n = 0
            for _, e in ipairs(set) do n = n + (first <= e and e < last and 1 or 0) end
            return n
          end
          assert.near(share_of(sets, inside), r:share(first, last), 1e-12)
          assert.near(share_of(sets, function(set) return math.min(1, inside(set)) end), r:touches(first, last), 1e-12)
        end
      end
    end)
  end

  it('loses routes over capacity, each as likely as any other of its expert', function()
    for _, popularity in ipairs { false, { 3, 1, 1, 1, 1, 1, 1, 1 } } do
      local r, kept = exchange.routing(model { capacity = 0.5, popularity = popularity }, 2), {}
      local sets = all_sets(8, 2, popularity)
      for e = 0, 7 do
        local load = share_of(sets, function(set) return (set[1] == e or set[2] == e) and 1 or 0 end)
        kept[e] = math.min(1, 0.5 * 2 / 8 / load)
      end
      local touches = share_of(sets, function(set)
        local none = 1
        for _, e in ipairs(set) do none = none * (e < 3 and 1 - kept[e] or 1) end
        return 1 - none
      end)
      assert.near(touches, r:touches(0, 3), 1e-12)
      assert.near(share_of(sets, function(set) return kept[set[1]] + kept[set[2]] end), r.routes, 1e-12)
      assert.equal(8, r.over)
      assert.near(share_of(sets, function(set) return (set[1] < 3 and 1 or 0) + (set[2] < 3 and 1 or 0) end), r.contested(0, 3), 1e-12)
    end
  end)

  it('stays right for very many experts', function()
    local r = exchange.routing(model { experts = 2 ^ 40, top_k = 8 }, 2 ^ 10)
    assert.near(8 / 2 ^ 10, r:share(0, 2 ^ 30), 1e-12)
    assert.near(1 - (1 - 2 ^ -10) ^ 8, r:touches(0, 2 ^ 30), 1e-9)
  end)
end)

-- ---- by hand -------------------------------------------------------------------------------

-- What each of R ranks sends in a leg forth or back, when every token goes its way: [rank] = { things, messages, far,
-- far_messages }. Parcels go to places; over two levels by the rank with the sender's number on the other host, and with
-- `once` a token crosses once for all its parcels there.
local function by_hand(sets, g)
  local sent, seen = {}, {}
  for r = 0, g.ranks - 1 do sent[r] = { things = 0, messages = 0, far = 0, far_messages = 0 } end
  local function host(r) return math.floor(r / g.on_host) end
  local function hop(from, to, step)
    if g.back then from, to = to, from end
    if from == to then return end
    local message, far = step .. ':' .. from .. ':' .. to, host(from) ~= host(to)
    local s = sent[from]
    s.things, s.far = s.things + 1, s.far + (far and 1 or 0)
    if not seen[message] then s.messages, s.far_messages = s.messages + 1, s.far_messages + (far and 1 or 0) end
    seen[message] = true
  end
  for from = 0, g.ranks - 1 do
    for t, set in ipairs(sets) do
      local been = {}
      for _, e in ipairs(set) do
        local place = math.floor(e * g.places / 8)
        for slice = 0, g.ranks / g.places - 1 do
          local to = place * g.ranks / g.places + slice
          local bearer = host(to) * g.on_host + from % g.on_host
          if not (g.once and been[to]) then
            if g.way ~= 'two_level' or host(from) == host(to) then hop(from, to, 'inside')
            else
              if not (g.once and been['host' .. host(to)]) then hop(from, bearer, 'across') end
              hop(bearer, to, 'inside')
            end
          end
          been[to], been['host' .. host(to)] = true, true
        end
      end
      assert(t)
    end
  end
  return sent
end

local function planned(how, g, popularity)
  local context = { model = model { exchange = how, popularity = popularity }, bytes = BYTES, on_host = g.on_host,
    mesh = layout.new { ranks = g.ranks, ep = g.places, etp = g.ranks / g.places } }
  context.routing = exchange.routing(context.model, g.places)
  return exchange.of(context, #all_sets(8, 2, popularity), { { elements = 100, bytes = BYTES } })
end

local function leg(x, name)
  for _, l in ipairs(x.legs) do
    if l.name == name then return l end
  end
end

describe('an exchange', function()
  local WAYS = { { 'rows', {} }, { 'once', { once = true } }, { 'two_level', { way = 'two_level' } },
    { 'once over two levels', { way = 'two_level', once = true } } }
  local GROUPS = { { ranks = 2, places = 2, on_host = 1 }, { ranks = 4, places = 4, on_host = 2 },
    { ranks = 8, places = 8, on_host = 2 }, { ranks = 8, places = 4, on_host = 4 }, { ranks = 4, places = 4, on_host = 4 } }
  for _, way in ipairs(WAYS) do
    it(('sends what can be counted by hand: %s'):format(way[1]), function()
      local sets = all_sets(8, 2)
      for _, g in ipairs(GROUPS) do
        for _, back in ipairs { false, true } do
          local want = by_hand(sets, { ranks = g.ranks, places = g.places, on_host = g.on_host, way = way[2].way,
            once = way[2].once, back = back })
          local got = leg(planned(way[2], g), back and 'combine' or 'dispatch')
          for r = 0, g.ranks - 1 do
            local each, where = DIM * BYTES, ('%d ranks, rank %d, %s'):format(g.ranks, r, tostring(back))
            assert.near(want[r].things * each, got.near.bytes + got.far.bytes, 1e-6, where)
            assert.near(want[r].far * each, got.far.bytes, 1e-6, where)
            assert.equal(want[r].messages, got.near.messages + got.far.messages, where)
            assert.equal(want[r].far_messages, got.far.messages, where)
          end
        end
      end
    end)
  end

  it('pads to the busiest: nothing more where routing is even, more where it is not', function()
    local g = { ranks = 4, places = 4, on_host = 4 }
    local exact, padded = leg(planned('rows', g), 'dispatch'), leg(planned('padded', g), 'dispatch')
    assert.near(exact.near.bytes, padded.near.bytes, 1e-6)
    local popular = { 3, 1, 1, 1, 1, 1, 1, 1 }
    local most = 42 * (0.5 + 9 / 42) -- rows to the first place, of two experts
    assert.near(3 * most * DIM * BYTES, leg(planned('padded', g, popular), 'dispatch').near.bytes, 1e-6)
  end)

  it('sends parts with as many bytes in more messages', function()
    local g = { ranks = 4, places = 4, on_host = 4 }
    local whole, parts = leg(planned('once', g), 'dispatch'), leg(planned({ once = true, parts = 3 }, g), 'dispatch')
    assert.near(whole.near.bytes, parts.near.bytes, 1e-6)
    assert.equal(3 * whole.near.messages, parts.near.messages)
  end)

  it('keeps rows of shadows at home, and sends their weights', function()
    local g, popular = { ranks = 4, places = 4, on_host = 4 }, { 3, 1, 1, 1, 1, 1, 1, 1 }
    local x = planned({ shadow = 1.5 }, g, popular)
    assert.equal(1, x.shadowed)
    assert.equal(3, x.experts) -- two of its own, and the shadow
    local owner = 3 * 100 * BYTES
    assert.equal(owner, leg(x, 'shadow').near.bytes + leg(x, 'shadow_backward').near.bytes * 3)
    assert.equal(0, planned({ shadow = 2.5 }, g, popular).shadowed)
  end)

  it('says which layouts two levels cannot have', function()
    local ok, message = pcall(planned, 'two_level', { ranks = 4, places = 4, on_host = 3 })
    assert.is_false(ok)
    assert.truthy(message:find('4 ranks hold the experts, 3 share a host', 1, true), message)
    ok, message = pcall(lumoe.estimate, { model = { experts = 4, popularity = { 1, 2 } } })
    assert.is_false(ok)
    assert.truthy(message:find('must be a number or have one for each of 4 experts', 1, true), message)
  end)
end)
