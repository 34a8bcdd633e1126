--- What this rank holds of a model and its optimizer, and who of all ranks writes which part.
--
-- A holding is a part of a named tensor (checkpoint/region.lua), as its parameter's placement says: ranges of each
-- dim (experts, columns, rows), of which ZeRO leaves a rank a flat chunk. An optimizer's tensors lie as what they
-- update does. Where the bytes are is the holding's business: in memory, or in a tier.
local cjson = require 'cjson'
local offload = require 'lumoe.dist.offload'
local placement = require 'lumoe.dist.placement'
local ranks = require 'lumoe.checkpoint.ranks'
local region = require 'lumoe.checkpoint.region'
local shard = require 'lumoe.dist.shard'

local layout = {}

---@class lumoe.Holding
---@field name string
---@field dtype string
---@field region lumoe.Region
---@field take fun(): lumoe.Tensor    the elements here, as they are or a copy of them
---@field give fun(t: lumoe.Tensor)?  puts them back, where `take` gives a copy

-- ---- this rank -----------------------------------------------------------------------------

local function in_memory(name, t, part)
  return { name = name, dtype = t.dtype, region = part, take = function() return t:detach() end }
end

local function whole_region(t) return region.new(t:shape_table()) end

local function part_of(p) return region.new(p.spec.whole, p.spec.at and placement.ranges(p)) end

-- Of that, what this rank's optimizer updates: all, or its chunk.
local function updated_part_of(p)
  return region.new(p.spec.whole, p.spec.at and placement.ranges(p), shard.range(p.tensor))
end

-- Where a parameter's elements are: in a tier, in the chunk that is all that stays of it, or in the parameter.
local function of_parameter(p)
  local lodging = offload.of(p)
  if lodging and lodging.chunk then
    return { name = p.name, dtype = p.tensor.dtype, region = updated_part_of(p), take = function() return offload.read(p) end,
      give = function(t) offload.write(p, t) end }
  elseif shard.stage(p.tensor) == 3 then return in_memory(p.name, shard.chunk(p.tensor), updated_part_of(p)) end
  return in_memory(p.name, p.tensor, part_of(p))
end

--- Parameters, and buffers, which every rank holds whole.
---@param model lumoe.Module
---@return lumoe.Holding[]
function layout.of_model(model)
  local list = {}
  for i, p in ipairs(model:named_parameters()) do list[i] = of_parameter(p) end
  for _, b in ipairs(model:named_buffers()) do list[#list + 1] = in_memory(b.name, b.tensor, whole_region(b.tensor)) end
  return list
end

-- State has its parameter's dims, or (Adafactor's means) all but the last, `row`, or all but the one before, `col`.
local function without(p, gone)
  local shape, ranges, at = {}, {}, placement.ranges(p)
  for d, size in ipairs(p.spec.whole) do
    if d ~= gone then shape[#shape + 1], ranges[#ranges + 1] = size, at[d] end
  end
  return region.new(shape, p.spec.at and ranges)
end

local function region_of_slot(p, slot, dims)
  local own, part = #p.spec.whole, updated_part_of(p)
  if part.chunk or dims == own then return part end
  return without(p, slot == 'col' and own - 1 or own)
end

--- `slot` and `parameter` tell where a holding is from.
---@param optimizer lumoe.Optimizer
---@return lumoe.Holding[]
function layout.of_optimizer(optimizer)
  local list = {}
  local function add(p, slot, h)
    h.slot, h.parameter = slot, p.name
    list[#list + 1] = h
  end
  for _, p in ipairs(optimizer.params) do
    local slots, away, dtype = {}, optimizer.offloaded:slots(p.name)
    for _, slot in ipairs(away or {}) do
      add(p, slot, { name = ('optimizer.%s.%s'):format(p.name, slot), dtype = dtype[slot], region = updated_part_of(p),
        take = function() return optimizer.offloaded:read(p.name, slot) end,
        give = function(t) optimizer.offloaded:write(p.name, slot, t) end })
    end
    for slot in pairs(optimizer.state[p.name] or {}) do slots[#slots + 1] = slot end
    table.sort(slots)
    for _, slot in ipairs(slots) do
      local t = optimizer.state[p.name][slot]
      add(p, slot, in_memory(('optimizer.%s.%s'):format(p.name, slot), t, region_of_slot(p, slot, t:dim())))
    end
  end
  return list
end

-- ---- all ranks together --------------------------------------------------------------------

local function describe(list)
  local out = {}
  for i, h in ipairs(list) do
    out[i] = { name = h.name, dtype = h.dtype, shape = h.region.shape, ranges = h.region.ranges, chunk = h.region.chunk }
  end
  return out
end

-- Each part once, by the first rank that holds it; empty ones by nobody, unless the tensor is empty.
local function share(whole, holders)
  local seen = {}
  for _, h in ipairs(holders) do
    local part = { shape = whole.shape, ranges = h.ranges, chunk = h.chunk }
    local text = region.text(part)
    if not seen[text] and (region.numel(part) > 0 or text == '') then
      seen[text] = true
      whole.pieces[#whole.pieces + 1] = { rank = h.rank, name = whole.name .. text, shape = whole.shape,
        ranges = h.ranges, chunk = h.chunk }
    end
  end
end

--- The whole tensors that all ranks hold together: name -> { name, dtype, shape, pieces }, a piece being
-- { rank, name, shape, ranges, chunk }: the part that `rank` writes, under that name.
---@param list lumoe.Holding[]
function layout.whole(list)
  local mine = describe(list)
  local all = { mine }
  if ranks.size() > 1 then
    for r, text in ipairs(ranks.gather(cjson.encode(mine))) do all[r] = cjson.decode(text) end
  end
  local wholes, holders = {}, {}
  for r, held in ipairs(all) do
    for _, h in ipairs(held) do
      h.rank = r - 1
      holders[h.name] = holders[h.name] or {}
      table.insert(holders[h.name], h)
    end
  end
  for name, hs in pairs(holders) do
    local whole = { name = name, dtype = hs[1].dtype, shape = hs[1].shape, pieces = {} }
    for _, h in ipairs(hs) do
      if table.concat(h.shape, ', ') ~= table.concat(whole.shape, ', ') then
        error(('%s is [%s] on one rank and [%s] on another'):format(name, table.concat(whole.shape, ', '),
          table.concat(h.shape, ', ')), 0)
      end
    end
    share(whole, hs)
    local gap = region.missing(whole.pieces, whole.shape)
    if gap then error(('%s: no rank holds element %.0f'):format(name, gap), 0) end
    wholes[name] = whole
  end
  return wholes
end

return layout
