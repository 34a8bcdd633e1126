--- What a list of parameters takes of a rank: what stays, what is in the tier, and what passes through while their unit
-- is at work, their gradients travel, or their state is updated.
local block = require('lumoe.estimate.unit').block
local sharding = require 'lumoe.estimate.sharding'
local wires = require 'lumoe.estimate.wires'

local footprint = {}

-- ---- what stays ----------------------------------------------------------------------------

local function state_bytes(p, n) return 2 * block(4 * n) + (p.bytes == 2 and block(4 * n) or 0) end

local function bytes_of(p, mesh)
  return {
    parameters = block(p.bytes * sharding.share(p, mesh, 'parameters')),
    gradients = block(4 * sharding.share(p, mesh, 'gradients')),
    optimizer = state_bytes(p, sharding.share(p, mesh, 'optimizer')),
  }
end

local ADDED = 2 ^ 18 -- elements of a gradient in the tier that are added to at a time (runtime/tier/offload.c)

--- What stays `here`, what is `away` in the tier; and what is here for as long as their unit needs it: whole parameters
-- (`gathered`), gradients that are yet to be divided, what is read `ahead`;
-- and, where several backwards add up in the tier, what is `adding`.
function footprint.of(parameters, mesh)
  local f = { here = { parameters = 0, gradients = 0, optimizer = 0 }, away = { parameters = 0, gradients = 0, optimizer = 0 },
    gathered = 0, undivided = 0, ahead = 0, adding = 0 }
  for _, p in ipairs(parameters) do
    for what, n in pairs(bytes_of(p, mesh)) do
      local where = sharding.is_away(mesh, what) and f.away or f.here
      where[what] = where[what] + n
    end
    local stage = mesh.stage[p.group]
    if stage >= 3 then f.gathered = f.gathered + block(p.bytes * p.here) end
    f.adding = math.max(f.adding, block(4 * math.min(ADDED, sharding.share(p, mesh, 'gradients'))))
    if stage >= 2 then f.undivided = f.undivided + block(4 * p.here) end
  end
  if not sharding.is_away(mesh, 'gradients') then f.adding = 0 end
  if sharding.is_away(mesh, 'parameters') then f.ahead = f.away.parameters end
  return f
end

-- ---- what passes through -------------------------------------------------------------------

-- Windows through which a stream's state passes in the update (optim/stream.lua), booked as the optimizer's.
local WINDOWS, STREAM, GRAIN = 3, 2 ^ 21, 1024
local function windows(elements, slots, parameter, bucket)
  if elements == 0 then return 0 end
  local each = math.max(GRAIN, math.floor((bucket or STREAM) / (4 * (slots + 1)) / GRAIN) * GRAIN)
  return math.min(WINDOWS, math.ceil(elements / each)) * ((slots + 1) * block(4 * each) + block(parameter * each))
end

--- Of the update: one stream for bf16 parameters (m, v, master), one for those that stay f32, one after the other.
function footprint.passing_state(units, mesh)
  if not mesh.offload then return 0 end
  local elements, moves = { [2] = 0, [4] = 0 }, mesh.offload == 'parameters' and 1 or 0
  for _, u in ipairs(units) do
    for _, p in ipairs(u.parameters) do
      elements[p.bytes] = elements[p.bytes] + math.ceil(sharding.share(p, mesh, 'optimizer') / GRAIN) * GRAIN
    end
  end
  return math.max(windows(elements[2], 3, 2 * moves, mesh.bucket), windows(elements[4], 2, 4 * moves, mesh.bucket))
end

--- What a unit's gradients take while they travel: buffers, bucket by bucket, and of those alone in theirs, themselves.
function footprint.travelling(parameters, mesh)
  local buckets, alone = sharding.buckets(parameters, mesh), 0
  for _, b in ipairs(buckets) do
    local moves = b.ranks > 1
    b.buffers = b.count > 1 and block(b.bytes) or 0 -- packed
    if b.count == 1 and b.divided then alone = alone + b.taken end
    if moves then b.buffers = b.buffers + block(b.divided and b.bytes or wires.all_reduce_scratch(b.bytes, b.ranks)) end
  end
  return buckets, alone
end

--- Buffers of the buckets under way. Expected are those of this unit and of the one before; a rank that runs ahead of the
-- others may have more, up to a bound. Gathering a unit waits for what is under way.
function footprint.flight()
  local units = {}
  return function(buckets, gathers)
    if gathers then units = {} end
    table.insert(units, buckets)
    local expected, bound, gradients = 0, 0, 0
    for i = #units, 1, -1 do
      for k = #units[i], 1, -1 do
        local b = units[i][k]
        gradients = gradients + b.bytes
        if gradients > sharding.IN_FLIGHT and gradients > b.bytes then return expected, bound end
        bound = bound + b.buffers
        if i >= #units - 1 then expected = expected + b.buffers end
      end
    end
    return expected, bound
  end
end

return footprint
