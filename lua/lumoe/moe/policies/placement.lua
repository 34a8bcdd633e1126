--- Where experts live: from who is used together to an owner map, for `moe.Layer { owner = }`.
--
--     local placement = moe.policies.placement
--     local counts = placement.counts(layer.experts.count)
--     counts:add(layer.last_plan)                       -- after each step, for a while
--     counts:reduce(mesh.expert)                        -- all ranks
--     local owner = placement.place(counts, { places = mesh.ep, hosts = { 0, 0, 1, 1 } })
--
-- A token that goes to each place once costs a row less for each pair of its experts that share a place, and where they
-- share a host, nothing between hosts. So: cut as few pairs as can be, those between hosts first, with no place busier
-- than a little over the best that balance alone can do. Experts are placed greedily, then moved and swapped (Kernighan
-- and Lin 1970) while that helps. The same counts give the same map on every rank.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local checked = require 'lumoe.dist.checked'
local options = require 'lumoe.options'
local status = require 'lumoe.status'

local placement = {}

-- ---- counts --------------------------------------------------------------------------------

---@class lumoe.moe.CoActivation
---@field experts integer
---@field load number[]        double[experts]: routes
---@field together number[]    double[experts * experts]: tokens that both go to
local Counts = {}
Counts.__index = Counts

--- Of no tokens yet.
---@param experts integer
---@return lumoe.moe.CoActivation
function placement.counts(experts)
  return setmetatable({ experts = experts, load = ffi.new('double[?]', experts),
    together = ffi.new('double[?]', experts * experts) }, Counts)
end

--- Adds the tokens of this rank in a plan; dropped routes count, since they wanted to go there.
---@param plan lumoe.Plan
function Counts:add(plan)
  if plan.experts ~= self.experts then
    status.argument('placement: the plan has %d experts, the counts %d', plan.experts, self.experts)
  end
  local ids, k, n = C.lm_plan_expert_ids(plan.pointer), plan.top_k, self.experts
  for t = 0, plan.tokens - 1 do
    for s = t * k, t * k + k - 1 do
      local e = ids[s]
      if e >= 0 then
        self.load[e] = self.load[e] + 1
        for u = t * k, t * k + k - 1 do
          local f = ids[u]
          if f >= 0 and f ~= e then self.together[e * n + f] = self.together[e * n + f] + 1 end
        end
      end
    end
  end
  return self
end

--- Adds up what the ranks of a group have counted; they all call it.
---@param group lumoe.Group
function Counts:reduce(group)
  if group.size > 1 then
    local n = self.experts
    checked(C.lm_all_reduce(group.pointer, self.load, n, C.LM_F64, C.LM_REDUCE_SUM), self.load)
    checked(C.lm_all_reduce(group.pointer, self.together, n * n, C.LM_F64, C.LM_REDUCE_SUM), self.together)
  end
  return self
end

-- ---- a map under construction --------------------------------------------------------------

-- place[e], or nil; load and members of each place; tie[e][p]: how often e goes together with those at p, weighed: whole
-- where they would share the place, in part where only the host.
local Map = {}
Map.__index = Map

local function new_map(counts, o)
  local m = setmetatable({ n = counts.experts, places = o.places, hosts = o.hosts, counts = counts, near = o.near,
    limit = math.huge, most = o.most, place = {}, load = {}, members = {}, tie = {} }, Map)
  for p = 0, m.places - 1 do m.load[p], m.members[p] = 0, 0 end
  for e = 0, m.n - 1 do
    m.tie[e] = {}
    for p = 0, m.places - 1 do m.tie[e][p] = 0 end
  end
  return m
end

-- What a pair saves when one is at p and the other at q.
function Map:share(p, q)
  if p == q then return 1 end
  return self.hosts[p] == self.hosts[q] and self.near or 0
end

function Map:put(e, p)
  local old = self.place[e]
  for f = 0, self.n - 1 do
    local w = self.counts.together[e * self.n + f]
    if w > 0 then
      for q = 0, self.places - 1 do
        self.tie[f][q] = self.tie[f][q] + w * (self:share(p, q) - (old and self:share(old, q) or 0))
      end
    end
  end
  if old then self.load[old], self.members[old] = self.load[old] - self.counts.load[e], self.members[old] - 1 end
  self.place[e] = p
  self.load[p], self.members[p] = self.load[p] + self.counts.load[e], self.members[p] + 1
end

-- The experts by falling weight, ties by id.
local function sorted(counts, weight)
  local order = {}
  for e = 0, counts.experts - 1 do order[e + 1] = e end
  table.sort(order, function(a, b)
    if weight(a) ~= weight(b) then return weight(a) > weight(b) end
    return a < b
  end)
  return order
end

-- Orders in which experts may be placed: the busiest first, those with most company, as they come, and back.
local function orders(counts)
  local n, company = counts.experts, {}
  for e = 0, n - 1 do
    company[e] = 0
    for f = 0, n - 1 do company[e] = company[e] + counts.together[e * n + f] end
  end
  return { sorted(counts, function(e) return counts.load[e] end), sorted(counts, function(e) return company[e] end),
    sorted(counts, function(e) return -e end), sorted(counts, function(e) return e end) }
end

-- Each expert to the least busy place: about the best for balance alone. Returns the busiest place's load.
function Map:spread(order)
  local busiest = 0
  for _, e in ipairs(order) do
    local best
    for p = 0, self.places - 1 do
      if self.members[p] < self.most and (not best or self.load[p] < self.load[best]) then best = p end
    end
    self:put(e, best)
    busiest = math.max(busiest, self.load[best])
  end
  return busiest
end

-- Each expert to where most of its company is, while there is room; else where there is least to do.
function Map:fill(order)
  for _, e in ipairs(order) do
    local best, quiet
    for p = 0, self.places - 1 do
      if self.members[p] < self.most then
        local fits = self.load[p] + self.counts.load[e] <= self.limit
        if fits and (not best or self.tie[e][p] > self.tie[e][best]
          or self.tie[e][p] == self.tie[e][best] and self.load[p] < self.load[best]) then best = p end
        if not quiet or self.load[p] < self.load[quiet] then quiet = p end
      end
    end
    self:put(e, best or quiet)
  end
end

-- Load over the limit, if places p and q had these loads instead of theirs.
function Map:excess(p, load_p, q, load_q)
  return math.max(load_p - self.limit, 0) + math.max(load_q - self.limit, 0)
    - math.max(self.load[p] - self.limit, 0) - math.max(self.load[q] - self.limit, 0)
end

-- What is better after e goes to q (and f, if there is one, to where e was): first less excess, then more ties.
function Map:gain(e, q, f)
  local p, load = self.place[e], self.counts.load
  local shift = load[e] - (f and load[f] or 0)
  local gain = self.tie[e][q] - self.tie[e][p]
  if f then
    local w = self.counts.together[e * self.n + f]
    gain = gain + self.tie[f][p] - self.tie[f][q] - 2 * w * (1 - self:share(p, q))
  end
  return -self:excess(p, self.load[p] - shift, q, self.load[q] + shift), gain
end

-- The best move or swap of experts that are free, whether it helps or not: { relief, gain, e, q, f }, or nil.
function Map:best_step(free)
  local relief, gain, step = -math.huge, -math.huge, nil
  local function consider(e, q, f)
    local r, g = self:gain(e, q, f)
    if r > relief + 1e-9 or r >= relief - 1e-9 and g > gain + 1e-9 then
      relief, gain, step = r, g, { relief = r, gain = g, e = e, q = q, f = f }
    end
  end
  for e = 0, self.n - 1 do
    if free[e] then
      for q = 0, self.places - 1 do
        if q ~= self.place[e] and self.members[q] < self.most then consider(e, q) end
      end
      for f = e + 1, self.n - 1 do
        if free[f] and self.place[f] ~= self.place[e] then consider(e, self.place[f], f) end
      end
    end
  end
  return step
end

-- One pass as Kernighan and Lin's: step after step, the best first, each expert once, also where it costs for now; then
-- back to the best map on the way. True if that is better than what there was.
function Map:pass()
  local free, best, better = {}, { relief = 0, gain = 0 }, false
  for e = 0, self.n - 1 do free[e], best[e] = true, self.place[e] end
  local relief, gain = 0, 0
  for _ = 1, self.n do
    local step = self:best_step(free)
    if not step then break end
    local p = self.place[step.e]
    self:put(step.e, step.q)
    free[step.e] = false
    if step.f then
      self:put(step.f, p)
      free[step.f] = false
    end
    relief, gain = relief + step.relief, gain + step.gain
    if relief > best.relief + 1e-9 or relief >= best.relief - 1e-9 and gain > best.gain + 1e-9 then
      best, better = { relief = relief, gain = gain }, true
      for e = 0, self.n - 1 do best[e] = self.place[e] end
    end
  end
  for e = 0, self.n - 1 do
    if self.place[e] ~= best[e] then self:put(e, best[e]) end
  end
  return better
end

-- Load over the limit, and ties kept.
function Map:score()
  local over, kept = 0, 0
  for p = 0, self.places - 1 do over = over + math.max(self.load[p] - self.limit, 0) end
  for e = 0, self.n - 1 do kept = kept + self.tie[e][self.place[e]] end
  return over, kept
end

function Map:better_than(other)
  local over, kept = self:score()
  local others_over, others_kept = other:score()
  if math.abs(over - others_over) > 1e-9 then return over < others_over end
  return kept >= others_kept
end

function Map:improve()
  for _ = 1, 20 do
    if not self:pass() then return end
  end
end

-- ---- the policy ----------------------------------------------------------------------------

local function check(counts, o)
  o = options.check('placement', o, { places = 'number', hosts = 'table?', slack = 'number?', most = 'number?', near = 'number?' })
  local hosts = {}
  for p = 0, o.places - 1 do hosts[p] = o.hosts and o.hosts[p + 1] or 0 end
  local most = o.most or math.ceil(counts.experts / o.places)
  if most * o.places < counts.experts then
    status.argument('placement: %d places of at most %d experts do not hold %d', o.places, most, counts.experts)
  end
  return { places = o.places, hosts = hosts, slack = o.slack or 0.1, most = most, near = o.near or 0.75 }
end

--- What a map costs. owner: as place() gives it. Of all pairs of experts that a token goes to: those at two places, and
-- those on two hosts; and the load of the busiest place and of all in the mean.
---@return { pairs_apart: number, pairs_between_hosts: number, busiest: number, mean: number }
function placement.cost(counts, owner, hosts)
  local cost, load, places = { pairs_apart = 0, pairs_between_hosts = 0, busiest = 0 }, {}, 0
  local sum = 0
  for e = 0, counts.experts - 1 do
    local p = owner[e + 1]
    places, load[p], sum = math.max(places, p + 1), (load[p] or 0) + counts.load[e], sum + counts.load[e]
    cost.busiest = math.max(cost.busiest, load[p])
    for f = 0, e - 1 do
      local q, w = owner[f + 1], counts.together[e * counts.experts + f]
      if q ~= p then cost.pairs_apart = cost.pairs_apart + w end
      if hosts and hosts[q + 1] ~= hosts[p + 1] then cost.pairs_between_hosts = cost.pairs_between_hosts + w end
    end
  end
  cost.mean = sum / (hosts and #hosts or places)
  return cost
end

--- The place of each expert, a list from expert 0. Options:
--   places  how many there are (mesh.ep)
--   hosts   the host of each place; nil: one host
--   slack   the busiest place may have so much more than with balance alone; 0.1: a tenth
--   most    experts of a place; by default as even as can be
--   near    what two experts on one host but two places save, where at one place they would save 1 (0.75)
---@param counts lumoe.moe.CoActivation
---@return integer[]
function placement.place(counts, o)
  o = check(counts, o)
  local start, map = orders(counts), new_map(counts, o)
  map.limit = map:spread(start[1]) * (1 + o.slack)
  map:improve()
  for _, order in ipairs(start) do -- the end of the best start
    local other = new_map(counts, o)
    other.limit = map.limit
    other:fill(order)
    other:improve()
    if other:better_than(map) then map = other end
  end
  local owner = {}
  for e = 0, counts.experts - 1 do owner[e + 1] = map.place[e] end
  return owner
end

return placement
