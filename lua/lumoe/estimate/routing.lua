--- Which experts tokens choose, in expectation. A token chooses a set of top_k different experts, with a probability
-- proportional to the product of their popularities w; all alike: any set is as likely as any other.
--
-- With e_k(w) the sum over all sets of k experts of the product of their w (the coefficient of x^k in the product of
-- all 1 + w x), and E experts:
--   load(e)     a token's routes to e:  w(e) e_{k-1}(w without e) / e_k(w);  all alike: k / E
--   kept(e)     what a capacity factor c leaves of it:  min(load(e), c k / E)
--   share(A)    a token's routes to experts A that travel:  sum of kept over A, without shadowed experts
--   touches(A)  that there is one:  1 - e_k(w) with w (1 - kept / load) in A, over e_k(w);
--               all alike, nothing dropped:  1 - C(E - |A|, k) / C(E, k)
-- Experts are in even blocks at their places, so that A is a range of them; the first is number 0.
local routing = {}

-- ---- polynomials up to x^k: lists of k + 1 coefficients, from that of x^0 -------------------

local function one(k)
  local p = { 1 }
  for j = 1, k do p[j + 1] = 0 end
  return p
end

-- p · (1 + w x)
local function times(p, w)
  local q = { p[1] }
  for j = 2, #p do q[j] = p[j] + w * p[j - 1] end
  return q
end

-- The last coefficient of p · q · r.
local function last_of(p, q, r)
  local k, sum = #p - 1, 0
  for i = 0, k do
    for j = 0, k - i do sum = sum + p[i + 1] * q[j + 1] * r[k - i - j + 1] end
  end
  return sum
end

-- ---- all alike -----------------------------------------------------------------------------

local Even = {}
Even.__index = Even

function Even:share(first, last) return (last - first) * self.kept end

-- That none of a token's routes to n of the experts is kept: the sum over how many it has of
-- C(n, j) (1 - kept / load)^j C(E - n, k - j) / C(E, k).
function Even:touches(first, last)
  local n, rest, k = last - first, self.experts - (last - first), self.top_k
  local lost, none = 1 - self.kept * self.experts / k, 0
  for j = 0, lost > 0 and math.min(n, k) or 0 do
    local ways = lost ^ j -- as a product of ratios, each near 1: binomials alone would overflow
    for i = 0, k - 1 do
      local up = i < j and (n - i) * (k - i) / (i + 1) or math.max(rest - (i - j), 0)
      ways = ways * up / (self.experts - i)
    end
    none = none + ways
  end
  return 1 - none
end

-- ---- some more popular than others ---------------------------------------------------------

local Uneven = {}
Uneven.__index = Uneven

-- Products over the experts before each one, and over it and all after it.
local function products(w, k)
  local before, after = { [0] = one(k) }, { [#w] = one(k) }
  for e = 1, #w do before[e] = times(before[e - 1], w[e]) end
  for e = #w, 1, -1 do after[e - 1] = times(after[e], w[e]) end
  return before, after
end

local function uneven(popularity, top_k)
  local self, sum = setmetatable({ top_k = top_k, experts = #popularity, w = {}, load = {}, kept = {}, travels = {} }, Uneven), 0
  for _, w in ipairs(popularity) do sum = sum + w end
  for e, w in ipairs(popularity) do self.w[e] = w * #popularity / sum end
  self.before, self.after = products(self.w, top_k)
  self.all = self.before[#self.w][top_k + 1]
  local x = one(top_k)
  x[1], x[2] = 0, 1
  for e, w in ipairs(self.w) do self.load[e] = w * last_of(self.before[e - 1], x, self.after[e]) / self.all end
  return self
end

function Uneven:share(first, last)
  local sum = 0
  for e = first + 1, last do sum = sum + self.travels[e] end
  return sum
end

function Uneven:touches(first, last)
  local inside = one(self.top_k)
  for e = first + 1, last do inside = times(inside, self.w[e] * (1 - self.travels[e] / self.load[e])) end
  return 1 - last_of(self.before[first], inside, self.after[last]) / self.all
end

-- ---- either --------------------------------------------------------------------------------

--- Of a model (estimate/description.lua), over so many places. Beside share and touches: routes, of a token, kept; over, how
-- many experts have more than their capacity, and contested(first, last), a token's routes to those of them; shadowed, how many are, and at_home, a token's
-- routes to them; owned(place): of those the place's; first(place): its first expert; even: no two places differ.
function routing.of(model, places)
  local experts, top_k = model.experts, model.top_k
  local most = model.capacity > 0 and model.capacity * top_k / experts or math.huge
  local shadows, self = {}
  if model.popularity then
    self = uneven(model.popularity, top_k)
    local mean = 0
    for e, load in ipairs(self.load) do
      self.kept[e] = math.min(load, most)
      self.travels[e], mean = self.kept[e], mean + self.kept[e] / experts
    end
    for e, kept in ipairs(self.kept) do
      if places > 1 and model.exchange.shadow and kept > model.exchange.shadow * mean then
        self.travels[e], shadows[#shadows + 1] = 0, e - 1
      end
    end
  else
    local load = top_k / experts
    self = setmetatable({ top_k = top_k, experts = experts, kept = math.min(load, most) }, Even)
  end
  function self.first(place) return math.ceil(place * experts / places) end
  function self.owned(place)
    local n = 0
    for _, e in ipairs(shadows) do n = n + (self.first(place) <= e and e < self.first(place + 1) and 1 or 0) end
    return n
  end
  self.shadowed, self.at_home = #shadows, 0
  for _, e in ipairs(shadows) do self.at_home = self.at_home + self.kept[e + 1] end
  self.even = not model.popularity and experts % places == 0
  self.routes = self:share(0, experts) + self.at_home -- of a token, kept
  if not model.popularity then
    self.over = top_k / experts > most and experts or 0
    function self.contested(first, last) return (last - first) * top_k / experts end
  else
    local before = { [0] = 0 } -- routes to the experts over capacity before each
    for _, load in ipairs(self.load) do
      if load > most then before[#before + 1] = before[#before] + load end
    end
    self.over = #before
    function self.contested(first, last) return before[last] - before[first] end
  end
  return self
end

return routing
