--- Which part of a parameter is here, and what follows from that alone: initial weights, over whom its
-- gradient is summed, who counts it in the norm, what a checkpoint holds.
--
-- A parameter's spec says
--   whole  its shape over all ranks
--   at     { [dim] = { {first, count}, ... } }: the ranges of the whole that this rank holds along a dim
--          (from 0), in their order here; a dim that is not named is held in full
--   group  'dense' or 'expert'
--   mesh   nil: that of the model it is in
-- A dense parameter with `at` is cut over mesh.tensor, disjointly; without, every rank holds it. An
-- expert's is spread over the places of mesh.expert by dim 0, its experts, and where another dim is in
-- `at`, cut over the ranks of a place too.
local ffi = require 'ffi'
local mesh = require 'lumoe.dist.mesh'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local placement = {}

-- ---- the part that is here -----------------------------------------------------------------

local function length(ranges)
  local n = 0
  for _, range in ipairs(ranges) do n = n + range[2] end
  return n
end

--- Ids, rising or not, as ranges.
---@param ids integer[]
---@return integer[][]
function placement.runs(ids)
  local ranges, last = {}, nil
  for _, id in ipairs(ids) do
    if last and last[1] + last[2] == id then last[2] = last[2] + 1
    else
      last = { id, 1 }
      ranges[#ranges + 1] = last
    end
  end
  return ranges
end

--- The shape of the part of `whole` that `at` names. Sizes that are not known yet pass through.
function placement.shape(whole, at)
  local shape = { unpack(whole) }
  for dim, ranges in pairs(at or {}) do
    local size = whole[dim + 1]
    if type(size) ~= 'number' then
      status.argument('nn.parameter: dim %d is cut, but there is no such dim of a known size', dim)
    end
    for _, range in ipairs(ranges) do
      if range[1] < 0 or range[2] < 0 or range[1] + range[2] > size then
        status.argument('nn.parameter: range %d to %d of dim %d, which has a size of %d', range[1],
          range[1] + range[2] - 1, dim, size)
      end
    end
    shape[dim + 1] = length(ranges)
  end
  return shape
end

--- The ranges here, dim after dim (the list counts dims from 1, as Lua does).
---@return integer[][][]
function placement.ranges(p)
  local list = {}
  for d, size in ipairs(p.spec.whole) do list[d] = (p.spec.at or {})[d - 1] or { { 0, size } } end
  return list
end

local function gcd(a, b)
  while b ~= 0 do a, b = b, a % b end
  return a
end

--- The part as blocks that follow one another in the flat whole: elements per block, and an i64 tensor of
-- the blocks' numbers in the order in which they lie here; nil when all is here.
function placement.blocks(spec)
  if not spec.at or next(spec.at) == nil then return nil end
  local unit, last = 1, 0 -- blocks lie along the last dim that is cut
  for dim in pairs(spec.at) do last = math.max(last, dim) end
  for d = last + 2, #spec.whole do unit = unit * spec.whole[d] end
  local step = spec.whole[last + 1]
  for _, range in ipairs(spec.at[last]) do step = gcd(gcd(step, range[1]), range[2]) end
  step = math.max(step, 1)
  local ids, count = nil, 0 -- numbers of the blocks, in the dims so far
  for d = 0, last do
    local size, by = spec.whole[d + 1], d == last and step or 1
    local ranges = spec.at[d] or { { 0, size } }
    local outer, inner = ids and count or 1, length(ranges) / by
    local grown, n = ffi.new('int64_t[?]', math.max(outer * inner, 1)), 0
    for o = 0, outer - 1 do
      local base = ids and ids[o] * (size / by) or 0
      for _, range in ipairs(ranges) do
        for i = range[1] / by, (range[1] + range[2]) / by - 1 do
          grown[n] = base + i
          n = n + 1
        end
      end
    end
    ids, count = grown, n
  end
  return unit * step, tensor.from(ids, { count }, { dtype = 'i64' })
end

-- ---- the ranks that matter to it -----------------------------------------------------------

--- The mesh of an entry of named_parameters().
function placement.mesh(p) return p.mesh or p.spec.mesh or mesh {} end

--- The group over which its gradient is summed: the ranks that hold the same elements and saw other tokens.
function placement.replicas(p)
  local m = placement.mesh(p)
  return p.spec.group == 'expert' and m.replicas or m.data
end

--- Whether this rank counts its part in a norm: of those that hold the same elements, the first does.
-- divided: its replicas have a chunk each.
function placement.counts(p, divided)
  local m, at = placement.mesh(p), p.spec.at or {}
  if not divided and placement.replicas(p).rank > 0 then return false end
  if p.spec.group ~= 'expert' then return next(at) ~= nil or m.tensor.rank == 0 end
  for dim in pairs(at) do
    if dim > 0 then return true end
  end
  return m.expert.rank % m.etp == 0
end

--- The stage of ZeRO asked for it.
function placement.stage(p) return placement.mesh(p).zero[p.spec.group] end

--- Every parameter's mesh, where some say none: all meshes of one model agree about what is not experts'.
---@param list table[]  entries of named_parameters(); each gets its `mesh`
function placement.resolve(list)
  local first
  for _, p in ipairs(list) do
    local m = p.spec.mesh
    if m and not first then first = p end
    if m and (m.tp ~= first.spec.mesh.tp or m.zero.dense ~= first.spec.mesh.zero.dense or m.offload ~= first.spec.mesh.offload) then
      status.argument("parameters '%s' and '%s' are of one model, but lie on meshes that differ: %s; %s", first.name, p.name,
        tostring(first.spec.mesh), tostring(m))
    end
  end
  for _, p in ipairs(list) do p.mesh = p.spec.mesh or (first and first.spec.mesh) or mesh {} end
end

return placement
