--- Every set of top_k experts, as often as the product of its experts' popularities says: routed by them in turn, tokens
-- meet the planner's expectations exactly.
---@return integer[][] sets  of ids from 0
return function(experts, top_k, popularity)
  local sets, chosen = {}, {}
  local function choose(from, times)
    if #chosen == top_k then
      for _ = 1, times do sets[#sets + 1] = { unpack(chosen) } end
      return
    end
    for e = from, experts - 1 do
      chosen[#chosen + 1] = e
      choose(e + 1, times * (popularity and popularity[e + 1] or 1))
      chosen[#chosen] = nil
    end
  end
  choose(0, 1)
  return sets
end
