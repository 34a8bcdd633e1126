--- What a list of parameters takes of a rank: what stays, what is in the tier, and what passes through while their unit
-- is at work, their gradients travel, or their state is updated.
local block = require('lumoe.estimate.unit').block
local sharding = require 'lumoe.estimate.sharding'
local wires = require 'lumoe.estimate.wires'

local footprint = {}

-- ---- what stays ----------------------------------------------------------------------------

local function state_bytes(p, n, mesh)
  return 2 * block(mesh.moment * n) + (sharding.has_master(p, mesh) and block(4 * n) or 0)
end

local function bytes_of(p, mesh)
  return {
    parameters = block(p.bytes * sharding.share(p, mesh, 'parameters')),
    gradients = block(sharding.gradient_bytes(p, mesh) * sharding.share(p, mesh, 'gradients')),
    optimizer = state_bytes(p, sharding.share(p, mesh, 'optimizer'), mesh),
  }
end

--- What stays `here`, what is `away` in the tier; and what is here for as long as their unit needs it: whole parameters
-- (`gathered`), gradients that are yet to be divided, what is read `ahead` where there is room.
function footprint.of(parameters, mesh)
  local f = { here = { parameters = 0, gradients = 0, optimizer = 0 }, away = { parameters = 0, gradients = 0, optimizer = 0 },
    gathered = 0, undivided = 0, ahead = 0 }
  for _, p in ipairs(parameters) do
    for what, n in pairs(bytes_of(p, mesh)) do
      local where = sharding.is_away(mesh, what) and f.away or f.here
      where[what] = where[what] + n
    end
    local stage = mesh.stage[p.group]
    if stage >= 3 then f.gathered = f.gathered + block(p.bytes * p.here) end
    if stage >= 2 then f.undivided = f.undivided + block(4 * p.here) end
  end
  if sharding.is_away(mesh, 'parameters') then f.ahead = f.away.parameters end
  return f
end

-- ---- what passes through -------------------------------------------------------------------

-- Windows through which a stream's state passes in the update (optim/stream.lua), booked as the optimizer's.
local WINDOWS, STREAM, GRAIN = 3, 2 ^ 21, 1024
local function windows(elements, mesh, master, parameter)
  if elements == 0 then return 0 end
  local wide = master and 2 or 1 -- the gradient, a master
  local each = math.max(GRAIN, math.floor((mesh.bucket or STREAM) / (4 * wide + 2 * mesh.moment) / GRAIN) * GRAIN)
  return math.min(WINDOWS, math.ceil(elements / each))
    * (wide * block(4 * each) + 2 * block(mesh.moment * each) + block(parameter * each))
end

--- Elements of a stream that a parameter takes.
function footprint.of_stream(elements) return math.ceil(elements / GRAIN) * GRAIN end

--- Of the update: one stream for bf16 parameters (m, v, master if any), one for those that stay f32, one after the other.
function footprint.passing_state(units, mesh)
  if not mesh.offload then return 0 end
  local elements, moves = { [2] = 0, [4] = 0 }, mesh.offload == 'parameters' and 1 or 0
  for _, u in ipairs(units) do
    for _, p in ipairs(u.parameters) do
      elements[p.bytes] = elements[p.bytes] + footprint.of_stream(sharding.share(p, mesh, 'optimizer'))
    end
  end
  return math.max(windows(elements[2], mesh, mesh.masters, 2 * moves), windows(elements[4], mesh, false, 4 * moves))
end

local ADDED = 2 ^ 18 -- elements of a gradient in the tier that are added to at a time (runtime/tier/offload.c)

-- The chunks of a divided bucket's gradients, when they are summed. again: they are there from the backward before, and
-- only those in the tier need room, in which they are added to.
local function chunks(b, mesh, again)
  local stay, most = 0, 0
  for _, p in ipairs(b.parameters) do
    local n = sharding.share(p, mesh, 'gradients')
    stay, most = stay + block(4 * n), math.max(most, block(4 * math.min(ADDED, n)))
  end
  if sharding.is_away(mesh, 'gradients') then return again and most or 0, 0 end
  return again and 0 or stay, again and 0 or stay
end

-- Buffers that a bucket travels in: several gradients are packed; sums need a place beside what is summed.
local function buffers(b)
  local packed = #b.parameters > 1 and b.ranks > 1 and block(b.bytes) or 0
  if b.ranks == 1 then return packed, 0 end
  return packed, block(b.divided and b.bytes or wires.all_reduce_scratch(b.bytes, b.ranks))
end

--- The gradients of a unit on their way, bucket after bucket, each gone before the next: a list of moments { gradients,
-- exchange }. again: not the first backward of a step.
function footprint.travelling(parameters, mesh, again)
  local list, whole, yet, left = {}, 0, 0, 0 -- summed in place; not divided yet; chunks of what was
  local function moment(packed, more, exchange)
    list[#list + 1] = { gradients = whole + yet - packed + left + more, exchange = exchange }
  end
  local all = sharding.buckets(parameters, mesh)
  for _, b in ipairs(all) do
    if b.divided then yet = yet + b.taken elseif not again then whole = whole + b.taken end
  end
  moment(0, 0, 0)
  for _, b in ipairs(all) do
    local packed, beside = buffers(b)
    if b.divided then
      local now, stay = chunks(b, mesh, again)
      moment(0, 0, packed)
      moment(packed > 0 and b.taken or 0, 0, packed + beside)
      if b.ranks > 1 then moment(b.taken, now, beside) -- what was sent is gone
      else moment(packed > 0 and b.taken or 0, now, packed) end
      yet, left = yet - b.taken, left + stay
    else moment(0, 0, packed + beside) end
  end
  return list
end

--- By how much more may be under way where memory is not short: a function to call with one unit after the other, as
-- their gradients leave. Nobody need have received what was sent before, up to a limit.
function footprint.flight(mesh)
  local under_way = {} -- { gradients, bytes }, oldest first
  return function(parameters)
    local gradients, bytes = 0, 0
    for _, b in ipairs(sharding.buckets(parameters, mesh)) do
      local packed, beside = buffers(b)
      if b.ranks > 1 then
        table.insert(under_way, { b.bytes, packed + beside + (b.divided and packed == 0 and b.taken or 0) })
      end
    end
    for i = #under_way, 1, -1 do
      gradients = gradients + under_way[i][1]
      if gradients > sharding.IN_FLIGHT and i < #under_way then break end
      bytes = bytes + under_way[i][2]
    end
    return bytes
  end
end

return footprint
