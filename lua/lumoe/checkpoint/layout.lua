--- What this rank holds of a model and its optimizer, and who of all ranks writes which rows.
--
-- A parameter is either whole on every rank, or (experts) spread by rows of its first dim: the ids of
-- this rank's rows in the whole parameter come from the parameter's spec, never from its name.
-- An optimizer's tensors lie as their parameter does.
local cjson = require 'cjson'
local ranks = require 'lumoe.checkpoint.ranks'

local layout = {}

---@class lumoe.Holding
---@field name string
---@field tensor lumoe.Tensor
---@field ids integer[]?  of its rows in the whole; nil: it is the whole
---@field unit integer    rows of the tensor for each id

-- Ids of the rows of a parameter that are here; nil when all are.
local function row_ids(p)
  local at, ids = p.spec.at or {}, {}
  for dim in pairs(at) do
    if dim > 0 then
      error(('%s is cut along dim %d; checkpoints hold parts along dim 0 alone so far'):format(p.name, dim), 0)
    end
  end
  if not at[0] then return nil end
  for _, range in ipairs(at[0]) do
    for id = range[1], range[1] + range[2] - 1 do ids[#ids + 1] = id end
  end
  return ids
end

local function holding(name, t, ids)
  local unit = ids and #ids > 0 and t:size(0) / #ids or 1
  return { name = name, tensor = t, ids = ids, unit = unit }
end

--- Parameters, and buffers, which every rank holds whole.
---@param model lumoe.Module
---@return lumoe.Holding[]
function layout.of_model(model)
  local list = {}
  for i, p in ipairs(model:named_parameters()) do list[i] = holding(p.name, p.tensor, row_ids(p)) end
  for _, b in ipairs(model:named_buffers()) do list[#list + 1] = holding(b.name, b.tensor, nil) end
  return list
end

--- `slot` and `parameter` tell where a holding is from.
---@param optimizer lumoe.Optimizer
function layout.of_optimizer(optimizer)
  local list = {}
  for _, p in ipairs(optimizer.params) do
    local ids, slots = row_ids(p), {}
    if optimizer.offloaded:slots(p.name) then
      error(("the optimizer's state of '%s' is offloaded, which checkpoints cannot hold yet"):format(p.name), 0)
    end
    for slot in pairs(optimizer.state[p.name]) do slots[#slots + 1] = slot end
    table.sort(slots)
    for _, slot in ipairs(slots) do
      -- Adafactor's column means are over all rows, so they are not spread.
      local h = holding(('optimizer.%s.%s'):format(p.name, slot), optimizer.state[p.name][slot], slot ~= 'col' and ids or nil)
      h.slot, h.parameter = slot, p.name
      list[#list + 1] = h
    end
  end
  return list
end

--- Runs of rows that follow one another both in the whole and here: { first, rows, at }, `at` counting here.
---@param ids integer[]
---@param unit integer
function layout.runs(ids, unit)
  local list, run = {}, nil
  for i, id in ipairs(ids) do
    if run and run.first + run.rows == id * unit then run.rows = run.rows + unit
    else
      run = { first = id * unit, rows = unit, at = (i - 1) * unit }
      list[#list + 1] = run
    end
  end
  return list
end

-- ---- all ranks together -------------------------------------------------------------------

local function rest_of(shape) return table.concat(shape, ', ', 2) end

local function describe(list)
  local out = {}
  for i, h in ipairs(list) do
    out[i] = { name = h.name, dtype = h.tensor.dtype, shape = h.tensor:shape_table(), ids = h.ids, unit = h.unit }
  end
  return out
end

-- Who writes each id of a spread tensor: the first rank that has it. Gives pieces in the order of the rows.
local function share_rows(whole, holders)
  local owner, count = {}, 0
  for _, h in ipairs(holders) do
    for i, id in ipairs(h.ids) do
      if not owner[id] then owner[id], count = { rank = h.rank, at = i - 1 }, count + 1 end
    end
    if #h.ids > 0 and not whole.unit then
      whole.unit, whole.rest = h.unit, rest_of(h.shape)
      whole.shape = { unpack(h.shape) }
    elseif #h.ids > 0 and (h.unit ~= whole.unit or rest_of(h.shape) ~= whole.rest) then
      error(('%s has rows of [%s] on one rank and of [%s] on another'):format(whole.name, whole.rest, rest_of(h.shape)), 0)
    end
  end
  local unit = whole.unit or 1
  whole.shape = whole.shape or holders[1].shape
  whole.shape[1] = count * unit
  for id = 0, count - 1 do
    local o, last = owner[id], whole.pieces[#whole.pieces]
    if not o then error(('%s: no rank holds row %d'):format(whole.name, id), 0) end
    if last and last.rank == o.rank and last.at + last.rows == o.at * unit then last.rows = last.rows + unit
    else whole.pieces[#whole.pieces + 1] = { rank = o.rank, first = id * unit, rows = unit, at = o.at * unit } end
  end
end

--- The whole tensors that all ranks hold together: name -> { dtype, shape, pieces }, a piece being
-- { rank, first, rows, at }: the rows that `rank` writes, in the whole and at its own place. A tensor
-- that is whole on every rank is one piece without rows, of the first rank.
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
    local whole = { name = name, dtype = hs[1].dtype, pieces = {} }
    if hs[1].ids then share_rows(whole, hs)
    else whole.shape, whole.pieces[1] = hs[1].shape, { rank = hs[1].rank } end
    wholes[name] = whole
  end
  return wholes
end

return layout
