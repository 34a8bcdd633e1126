--- Every layout that fits a number of ranks: the ways to factor them, and what can be switched on besides.
local layouts = {}

---@class lumoe.Layout
---@field tp integer
---@field ep integer
---@field etp integer
---@field zero { dense: integer, expert: integer }?
---@field offload string?
---@field recompute boolean?
---@field overlap boolean?  gradients travel during backward (dist.shard), as they do with ZeRO and offload
---@field exchange string?  of MoE layers
---@field micro_batches integer?  1 by default

-- What is switched on, besides a mesh as it is. Micro-batches change the capacity and the balancing losses of
-- a step, so they are compared with one process that has as many. An exchange needs experts on other ranks.
local EXTRAS = {
  { zero = { dense = 1, expert = 1 } },
  { zero = { dense = 2, expert = 2 } },
  { zero = { dense = 3, expert = 3 } },
  { zero = { dense = 1, expert = 3 } },
  { zero = { dense = 3, expert = 0 } },
  { overlap = true },
  { offload = 'optimizer' },
  { offload = 'parameters' },
  { recompute = true },
  { micro_batches = 2 },
  { exchange = 'once' },
  { exchange = 'two_level' },
  { exchange = 'padded' },
  { exchange = 'parts', recompute = true },
  { zero = { dense = 2, expert = 2 }, offload = 'optimizer', micro_batches = 2 },
  { zero = { dense = 3, expert = 3 }, recompute = true, micro_batches = 2 },
  { zero = { dense = 3, expert = 3 }, offload = 'parameters', recompute = true, micro_batches = 2 },
}

--- All { tp, ep, etp } of so many ranks: world = dp · tp = edp · ep · etp.
function layouts.meshes(size)
  local list = {}
  local function divisors(n)
    local all = {}
    for d = 1, n do
      if n % d == 0 then all[#all + 1] = d end
    end
    return all
  end
  for _, tp in ipairs(divisors(size)) do
    for _, spread in ipairs(divisors(size)) do
      for _, etp in ipairs(divisors(spread)) do list[#list + 1] = { tp = tp, ep = spread / etp, etp = etp } end
    end
  end
  return list
end

--- All layouts of so many ranks: each mesh as it is, and with each of the extras.
---@param extras table[]?  by default all that there are; {}: meshes alone
---@return lumoe.Layout[]
function layouts.list(size, extras)
  local list = {}
  for _, mesh in ipairs(layouts.meshes(size)) do
    list[#list + 1] = mesh
    for _, extra in ipairs(extras or EXTRAS) do
      if not extra.exchange or mesh.ep * mesh.etp > 1 then
        local layout = { tp = mesh.tp, ep = mesh.ep, etp = mesh.etp }
        for key, value in pairs(extra) do layout[key] = value end
        list[#list + 1] = layout
      end
    end
  end
  return list
end

--- `dp2 tp2 edp1 ep2 etp2 zero3/3 offload=parameters recompute micro2`; zero: dense / experts.
---@param size integer  ranks
function layouts.name(layout, size)
  local tp, ep, etp = layout.tp or 1, layout.ep or 1, layout.etp or 1
  local words = { ('dp%d tp%d edp%d ep%d etp%d'):format(size / tp, tp, size / (ep * etp), ep, etp) }
  local zero = layout.zero
  if zero then words[#words + 1] = ('zero%d/%d'):format(zero.dense or 0, zero.expert or 0) end
  if layout.overlap then words[#words + 1] = 'overlap' end
  if layout.offload then words[#words + 1] = 'offload=' .. layout.offload end
  if layout.exchange then words[#words + 1] = 'exchange=' .. layout.exchange end
  if layout.recompute then words[#words + 1] = 'recompute' end
  if (layout.micro_batches or 1) > 1 then words[#words + 1] = ('micro%d'):format(layout.micro_batches) end
  return table.concat(words, ' ')
end

return layouts
