--- A part of a tensor: which of its elements, and in which order they lie where the part is held.
--
--   shape    sizes of the whole
--   ranges   for each dim, the { first, count } that are here, in order; nil: the whole tensor. What they pick is
--            held row-major, as a tensor of the sizes that they add up to
--   chunk    { first, count } of that tensor's elements in their order: only these are here, flat; nil: all
--
-- Any two parts of one tensor, however they are cut, are matched through their runs: stretches of elements that
-- follow one another both in the whole and where the part lies.
local ffi = require 'ffi'

local region = {}

---@class lumoe.Region
---@field shape integer[]
---@field ranges integer[][][]?
---@field chunk integer[]?

local function product(sizes, from)
  local n = 1
  for d = from or 1, #sizes do n = n * sizes[d] end
  return n
end

local function full(ranges, size) return #ranges == 1 and ranges[1][1] == 0 and ranges[1][2] == size end

--- Sizes of the tensor that the ranges pick.
function region.sizes(r)
  local sizes = { unpack(r.shape) }
  for d, ranges in ipairs(r.ranges or {}) do
    sizes[d] = 0
    for _, range in ipairs(ranges) do sizes[d] = sizes[d] + range[2] end
  end
  return sizes
end

--- The shape in which the part is held.
function region.held(r) return r.chunk and { r.chunk[2] } or region.sizes(r) end

function region.numel(r) return product(region.held(r)) end

--- Ranges that are all full are none, and so is a chunk.
---@return lumoe.Region
function region.new(shape, ranges, chunk)
  local cut = false
  for d, size in ipairs(shape) do cut = cut or ranges ~= nil and not full(ranges[d], size) end
  local r = { shape = shape, ranges = cut and ranges or nil }
  if chunk and (chunk[1] > 0 or chunk[2] < region.numel(r)) then r.chunk = chunk end
  return r
end

-- The ranges of a dim by rising `first`, each with where it lies here.
local function in_order(ranges)
  local list, at = {}, 0
  for i, range in ipairs(ranges) do
    list[i] = { first = range[1], count = range[2], at = at }
    at = at + range[2]
  end
  table.sort(list, function(a, b) return a.first < b.first end)
  return list
end

local function cut_dims(r)
  local last = 0
  for d, size in ipairs(r.shape) do
    if not full(r.ranges[d], size) then last = d end
  end
  return last
end

-- f(first in the whole, first here, length), by rising place in the whole.
local function each_stretch(r, f)
  if not r.ranges then return f(0, 0, product(r.shape)) end
  local sizes, last = region.sizes(r), cut_dims(r)
  local unit, order = product(r.shape, last + 1), {}
  for d = 1, last do order[d] = in_order(r.ranges[d]) end
  local function walk(d, whole, here) -- elements of dim d before this one, in the whole and here
    for _, range in ipairs(order[d]) do
      if d == last then
        f((whole * r.shape[d] + range.first) * unit, (here * sizes[d] + range.at) * unit, range.count * unit)
      else
        for i = 0, range.count - 1 do
          walk(d + 1, whole * r.shape[d] + range.first + i, here * sizes[d] + range.at + i)
        end
      end
    end
  end
  walk(1, 0, 0)
end

-- Arrays that grow: runs of a cut matrix are as many as its rows.
local function grown(runs, room)
  for _, name in ipairs { 'first', 'at', 'length' } do
    local wider = ffi.new('double[?]', room)
    if runs.count > 0 then ffi.copy(wider, runs[name], 8 * runs.count) end
    runs[name] = wider
  end
  runs.room = room
end

--- Its runs: { count, first[], at[], length[] } from 0, by rising `first`; none is empty.
function region.runs(r)
  local runs = { count = 0, room = 0 }
  grown(runs, 16)
  local from, to = 0, math.huge
  if r.chunk then from, to = r.chunk[1], r.chunk[1] + r.chunk[2] end
  each_stretch(r, function(first, at, length)
    local low, high = math.max(at, from), math.min(at + length, to)
    if low >= high then return end
    local n = runs.count
    local whole, here = first + low - at, low - from
    if n > 0 and runs.first[n - 1] + runs.length[n - 1] == whole and runs.at[n - 1] + runs.length[n - 1] == here then
      runs.length[n - 1] = runs.length[n - 1] + high - low
      return
    end
    if n == runs.room then grown(runs, 2 * n) end
    runs.first[n], runs.at[n], runs.length[n], runs.count = whole, here, high - low, n + 1
  end)
  return runs
end

--- f(at in a, at in b, length) for each stretch that both have.
function region.common(a, b, f)
  local i, j = 0, 0
  while i < a.count and j < b.count do
    local low = math.max(a.first[i], b.first[j])
    local a_end, b_end = a.first[i] + a.length[i], b.first[j] + b.length[j]
    local high = math.min(a_end, b_end)
    if low < high then f(a.at[i] + low - a.first[i], b.at[j] + low - b.first[j], high - low) end
    if a_end <= b_end then i = i + 1 else j = j + 1 end
  end
end

--- The first element of the whole that is in none of the parts; nil when there is none.
---@param list lumoe.Region[]
function region.missing(list, shape)
  local total, stretches = product(shape), {}
  for _, r in ipairs(list) do
    if not r.ranges and not r.chunk then return nil end
    local runs = region.runs(r)
    for i = 0, runs.count - 1 do stretches[#stretches + 1] = { runs.first[i], runs.first[i] + runs.length[i] } end
  end
  table.sort(stretches, function(a, b) return a[1] < b[1] end)
  local covered = 0
  for _, s in ipairs(stretches) do
    if s[1] > covered then return covered end
    covered = math.max(covered, s[2])
  end
  return covered < total and covered or nil
end

--- The part as text after a tensor's name, '' for the whole: `[4:8]`, `[:,0:16]`, `[0:4+8:12]{100:200}`.
function region.text(r)
  local words = {}
  for d = 1, r.ranges and cut_dims(r) or 0 do
    local parts = {}
    for i, range in ipairs(r.ranges[d]) do parts[i] = ('%.0f:%.0f'):format(range[1], range[1] + range[2]) end
    words[d] = full(r.ranges[d], r.shape[d]) and ':' or table.concat(parts, '+')
  end
  local text = #words > 0 and '[' .. table.concat(words, ',') .. ']' or ''
  if r.chunk then text = text .. ('{%.0f:%.0f}'):format(r.chunk[1], r.chunk[1] + r.chunk[2]) end
  return text
end

-- ---- as read from a file -------------------------------------------------------------------

local function is_count(x) return type(x) == 'number' and x >= 0 and x % 1 == 0 and x < 2 ^ 53 end

local function is_range(x, size)
  return type(x) == 'table' and #x == 2 and is_count(x[1]) and is_count(x[2]) and x[1] + x[2] <= size
end

--- Whether it is a part of a tensor of this shape, and not nonsense.
function region.is_sound(r)
  if r.ranges ~= nil then
    if type(r.ranges) ~= 'table' or #r.ranges ~= #r.shape then return false end
    for d, size in ipairs(r.shape) do
      if type(r.ranges[d]) ~= 'table' then return false end
      for _, range in ipairs(r.ranges[d]) do
        if not is_range(range, size) then return false end
      end
    end
  end
  return r.chunk == nil or is_range(r.chunk, product(region.sizes(r)))
end

return region
