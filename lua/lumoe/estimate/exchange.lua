--- What the exchange of an MoE layer sends and holds (runtime/moe/), in closed form: every rank has as many tokens, and they
-- choose experts as estimate/routing.lua says.
--
-- R ranks hold the experts: at places, of `etp` ranks each when experts are cut. Of its t tokens a rank has x(d) parcels for
-- rank d: t times the routes of a token to d's place, or with `once` t times the chance that it has one there. In parcels:
--   direct     forth x(d) to each d, in all k t (1 - 1/R) where routing is even; back x(me) to each. R - 1 messages
--   padded     the most of all x to each, forth and back. R - 1 messages
--   two_level  H hosts of L ranks. Across, in one message to each other host: forth x(d) for all its ranks d, back x(me) for
--              each of them. Inside, in one to each neighbour: forth H x(d), its own and what H - 1 ranks of other hosts
--              brought; back the sum of x over this rank and those that it took things from. Where routing is even,
--              x (R - L) and x H (L - 1), in H - 1 and L - 1 messages
--   two_level and once   across goes u(h), t times the chance that a token has anything on host h, and so it comes back
-- With parts = n all of them go n times, an n-th each. Beside them:
--   plan       padded, two_level: everyone's counts, 8 R bytes to each; parts: 8 n E to each; once: 4 bytes a route, and
--              over two levels 4 for each parcel that crosses
--   once       weights forth and their gradients back, 4 bytes a route
--   shadows    an owner's weights to all, and all others' gradients of them (f32) to it
local routing = require 'lumoe.estimate.routing'
local status = require 'lumoe.status'

local exchange = {}

-- ---- a leg: things that go inside and between hosts ----------------------------------------

-- g: R `ranks`, of which `on_host` (L) in a row share a host. x[d + 1]: what anyone has for rank d.

local function host_of(g, rank) return math.floor(rank / g.on_host) end

-- early, late: the room it takes when it departs and when it lands, beside what is sent and received.
local function new_leg()
  return { near = { things = 0, messages = 0 }, far = { things = 0, messages = 0 }, early = 0, late = 0 }
end

local function count(wire, things)
  if things > 0 then wire.things, wire.messages = wire.things + things, wire.messages + 1 end
end

local function to_each(g, me, things)
  local leg = new_leg()
  for d = 0, g.ranks - 1 do
    if d ~= me then count(host_of(g, d) == host_of(g, me) and leg.near or leg.far, things(d)) end
  end
  return leg
end

local function on_host(g, x, h)
  local sum = 0
  for d = h * g.on_host, (h + 1) * g.on_host - 1 do sum = sum + x[d + 1] end
  return sum
end

local ways = {}

function ways.direct(g, x, me, back)
  return to_each(g, me, function(d) return back and x[me + 1] or x[d + 1] end)
end

function ways.padded(g, x, me)
  local most = 0
  for d = 1, g.ranks do most = math.max(most, x[d]) end
  local leg = to_each(g, me, function() return most end)
  leg.early = 2 * most * (g.ranks - 1)
  leg.late = leg.early
  return leg
end

-- u(h): what crosses to host h where a row crosses once.
function ways.two_level(g, x, me, back, u)
  local leg, hosts, home, number = new_leg(), g.ranks / g.on_host, host_of(g, me), me % g.on_host
  local across_in, brought = 0, 0
  for h = 0, hosts - 1 do
    local like_me = x[h * g.on_host + number + 1]
    brought = brought + like_me
    if h ~= home then
      local out = back and (u and u(home) or g.on_host * x[me + 1]) or (u or function() return on_host(g, x, h) end)(h)
      across_in = across_in + (back and (u and u(h) or g.on_host * like_me) or u and u(home) or on_host(g, x, home))
      count(leg.far, out)
    end
  end
  for d = home * g.on_host, (home + 1) * g.on_host - 1 do
    if d ~= me then count(leg.near, back and (u and hosts * x[me + 1] or brought) or hosts * x[d + 1]) end
  end
  local all = 0
  for d = 1, g.ranks do all = all + x[d] end
  local inside = back and not u and g.on_host * brought + all or hosts * on_host(g, x, home) + g.ranks * x[me + 1]
  local across = leg.far.things + across_in
  leg.early, leg.late = across + (back and u and inside or 0), across + (back and u and 0 or inside)
  return leg
end

-- ---- all legs of a layer -------------------------------------------------------------------

-- As bytes; n parts of it.
local function in_bytes(leg, name, wire, pass, each, parts)
  local function bytes(w) return { bytes = w.things * each, messages = w.messages * parts } end
  return { name = name, wire = wire, pass = pass, near = bytes(leg.near), far = bytes(leg.far), early = leg.early * each,
    late = leg.late * each }
end

-- What a rank tells and is told before rows move; `labels`: of routes, and of parcels that cross.
local function plan_legs(e, g, me, way, add)
  local once, two_levels = e.once, way == 'two_level'
  if way ~= 'direct' then
    for _ = 1, (e.parts > 1 and 1 or 0) + e.parts * (once and 2 or 1) do
      add(in_bytes(to_each(g, me, function() return g.ranks end), 'plan', 'plan', 'once', 8, 1))
    end
  end
  if e.parts > 1 then
    add(in_bytes(to_each(g, me, function() return e.parts * g.experts end), 'plan', 'plan', 'once', 8, 1))
  end
  if not once then return end
  add(in_bytes(ways.direct(g, g.routes, me), 'plan', 'plan', 'once', 4, e.parts))
  if two_levels and g.ranks > g.on_host then
    local crossing = ways.two_level(g, g.parcels, me)
    crossing.near = { things = 0, messages = 0 }
    add(in_bytes(crossing, 'plan', 'plan', 'once', 4, e.parts))
  end
end

-- Weights of shadowed experts, tensor by tensor.
local function shadow_legs(e, g, r, me, weights, add)
  local mine = r.owned(me) -- no slices: a rank is a place
  for _ = 1, e.parts do
    for _, w in ipairs(weights) do
      add(in_bytes(to_each(g, me, function() return mine end), 'shadow', 'shadows', 'forward', w.elements * w.bytes, 1))
      add(in_bytes(to_each(g, me, r.owned), 'shadow_backward', 'shadows', 'backward', w.elements * 4, 1))
    end
  end
end

-- Those of rank `me`.
local function legs(model, g, r, me, row, weights)
  local e, list = model.exchange, {}
  local way = ways[e.way]
  local function add(leg) list[#list + 1] = leg end
  plan_legs(e, g, me, e.way, add)
  for _, pass in ipairs { 'forward', 'backward' } do
    local suffix = pass == 'backward' and '_backward' or ''
    local first, second = pass == 'forward' and 'dispatch' or 'combine', pass == 'forward' and 'combine' or 'dispatch'
    add(in_bytes(way(g, g.parcels, me, false, g.crossing), first .. suffix, 'all-to-all', pass, row, e.parts))
    add(in_bytes(way(g, g.parcels, me, true, g.crossing), second .. suffix, 'all-to-all', pass, row, e.parts))
    if e.once then
      add(in_bytes(way(g, g.routes, me, pass == 'backward'), 'weights' .. suffix, 'all-to-all', pass, 4, e.parts))
    end
  end
  if r.shadowed > 0 then shadow_legs(e, g, r, me, weights, add) end
  return list
end

local function total(list)
  local bytes = 0
  for _, leg in ipairs(list) do bytes = bytes + leg.near.bytes + leg.far.bytes end
  return bytes
end

-- Ranks, and what a rank has for each.
local function group(context, r, tokens)
  local model, mesh = context.model, context.mesh
  local e, g = model.exchange, { ranks = mesh.ep * mesh.etp, experts = model.experts, parcels = {}, routes = {} }
  g.on_host = math.min(context.on_host, g.ranks)
  if e.way == 'two_level' and g.ranks % g.on_host ~= 0 then
    status.argument('estimate: two levels want hosts alike; %d ranks hold the experts, %d share a host', g.ranks, g.on_host)
  end
  for d = 0, g.ranks - 1 do
    local place = math.floor(d / mesh.etp)
    local first, last = r.first(place), r.first(place + 1)
    g.routes[d + 1] = tokens * r:share(first, last)
    g.parcels[d + 1] = e.once and tokens * r:touches(first, last) or g.routes[d + 1]
  end
  if e.way == 'two_level' and e.once and g.ranks > g.on_host then
    function g.crossing(h)
      local from, to = math.floor(h * g.on_host / mesh.etp), math.ceil((h + 1) * g.on_host / mesh.etp)
      return tokens * r:touches(r.first(from), r.first(to))
    end
  end
  return g
end

--- For `tokens` of this rank that go to experts. weights: those of an expert, by tensor { elements, bytes }.
-- Returns legs { name, wire, pass, near, far = { bytes, messages }, early, late } of the rank that sends most; and of the
-- rank that receives most: rows (routes kept), copies sent, received, arrivals (rows at its experts), own experts, experts
-- (with shadows), shadowed, owned (of those), tables (sizes of those that a row's one crossing needs).
function exchange.of(context, tokens, weights)
  local model, mesh = context.model, context.mesh
  local r = context.routing
  local g = group(context, r, tokens)
  local self = { rows = tokens * r.routes, copies = 0, received = 0, arrivals = -1, shadowed = r.shadowed, ranks = g.ranks,
    on_host = g.on_host, legs = {} }
  for d = 0, r.even and 0 or g.ranks - 1 do
    local place = math.floor(d / mesh.etp)
    local arrivals = g.ranks * g.routes[d + 1] + tokens * r.at_home
    if arrivals > self.arrivals then
      self.arrivals, self.received = arrivals, g.ranks * g.parcels[d + 1] + tokens * r.at_home
      self.own = r.first(place + 1) - r.first(place)
      self.owned = r.owned(place)
      self.experts = self.own + r.shadowed - self.owned
    end
    if g.ranks > 1 then
      local list = legs(model, g, r, d, model.dim * context.bytes, weights)
      if d == 0 or total(list) > total(self.legs) then self.legs = list end
    end
  end
  for d = 1, g.ranks do self.copies = self.copies + g.parcels[d] end
  self.copies = self.copies + tokens * r.at_home
  if g.crossing then -- entries of the tables of runtime/moe/per_host.c: what crosses, is handed on, is received, is summed
    local hosts, far = g.ranks / g.on_host, 0
    for h = 1, hosts - 1 do far = far + g.crossing(h) end
    local inside = hosts * on_host(g, g.parcels, 0)
    self.tables = { far, inside, self.received, far * math.min(g.on_host, model.top_k * mesh.etp) }
  end
  self.fan = model.exchange.once and math.min(model.top_k, mesh.ep) or model.top_k
  self.width = model.exchange.once and math.min(model.top_k, self.experts) or 1
  return self
end

exchange.routing = routing.of
return exchange
