--- The largest whole number that fits, where what fits is measured and grows about evenly with the number.
--
-- A line through the last two measurements gives the next guess, until one size fits and another does not;
-- then the gap between them is split where the line through its ends crosses the limit, until it is one percent.
local search = {}

local CLOSE = 0.01
local ROOM = 0.99 -- of the limit is aimed at while nothing is known on the other side

-- Where the line through two measurements comes to `bytes`.
local function crossing(a, b, bytes)
  if not a or b.bytes == a.bytes then return b.n * bytes / b.bytes end
  return a.n + (bytes - a.bytes) * (b.n - a.n) / (b.bytes - a.bytes)
end

local function between(low, n, high) return math.max(low, math.min(math.floor(n), high)) end

--- measure(n): bytes of size n. first: a size to begin with; most: the largest of interest. Returns n, its bytes, and
-- whether a larger one was seen not to fit; or nil when even 1 does not fit.
function search.largest(measure, limit, first, most)
  local fits, over, before
  local n = between(1, first, most)
  while true do
    local now = { n = n, bytes = measure(n) }
    if now.bytes <= limit then fits = now else over = now end
    if fits and over then
      if over.n - fits.n <= math.max(1, CLOSE * fits.n) then return fits.n, fits.bytes, true end
      local margin = math.max(1, math.floor((over.n - fits.n) * 0.05))
      n = between(fits.n + margin, crossing(fits, over, limit), over.n - margin)
    elseif fits then
      if n == most then return n, now.bytes, false end
      n = between(n + math.max(1, math.ceil(CLOSE * n)), crossing(before, now, limit / ROOM), math.min(4 * n, most))
    else
      if n == 1 then return nil end
      n = between(math.max(1, math.floor(n / 4)), crossing(before, now, limit * ROOM), n - 1)
    end
    before = now
  end
end

return search
