--- The ways to lay a model out that are compared, and the layouts that so many ranks make of them.
--
-- EP has one set of experts over all ranks; everything else is on every rank. EP+DP has two sets, each over half
-- of the ranks; two ranks have no halves, and there the two are the same. The others add something to EP+DP.
local modes = {}

local LIST = {
  { 'EP', {} },
  { 'EP+DP', {} },
  { 'EP+TP', { tp = 2 } },
  { 'EP+ZeRO-1', { zero = { dense = 1, expert = 1 } } },
  { 'EP+ZeRO-2', { zero = { dense = 2, expert = 2 } } },
  { 'EP+ZeRO-3', { zero = { dense = 3, expert = 3 } } },
  { 'EP+offload', { offload = 'optimizer' } },
  { 'EP+offload-parameters', { offload = 'parameters' } },
  { 'EP+offload+TP', { offload = 'parameters', tp = 2 } },
}
modes.BASE = 'EP+DP' -- what the others are compared with

--- Names, in order.
function modes.names()
  local list = {}
  for i, mode in ipairs(LIST) do list[i] = mode[1] end
  return list
end

--- The layout of a mode on so many ranks, for dist.mesh; or nil and why there is none.
---@param tier { dir: string?, bucket: number? }  of what is offloaded, as dist.mesh has them
function modes.layout(name, ranks, tier)
  for _, mode in ipairs(LIST) do
    if mode[1] == name then
      local layout = { ep = ranks, tp = mode[2].tp, zero = mode[2].zero }
      if layout.tp and ranks % layout.tp ~= 0 then return nil, ('needs a number of ranks that %d divides'):format(layout.tp) end
      if name ~= 'EP' and ranks > 2 then
        if ranks % 2 ~= 0 then return nil, 'needs an even number of ranks' end
        layout.ep = ranks / 2
      end
      if mode[2].offload then layout.offload = { to = mode[2].offload, dir = tier.dir, bucket = tier.bucket } end
      return layout
    end
  end
  return nil, 'there is no such mode'
end

return modes
