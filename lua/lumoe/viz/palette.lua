--- Colours for a fraction from 0 to 1: straight lines between a few anchors.
local palette = {}

-- Viridis, for terminals.
palette.dark = { { 68, 1, 84 }, { 59, 82, 139 }, { 33, 145, 140 }, { 94, 201, 98 }, { 253, 231, 37 } }

-- Blues, for pages.
palette.light = { { 248, 250, 252 }, { 190, 215, 238 }, { 107, 174, 214 }, { 33, 113, 181 }, { 8, 48, 107 } }

---@param anchors integer[][]
---@param fraction number  clamped to 0 .. 1
---@return integer red, integer green, integer blue  0 .. 255
function palette.at(anchors, fraction)
  local position = math.max(0, math.min(1, fraction)) * (#anchors - 1)
  local below = math.min(math.floor(position), #anchors - 2)
  local from, to, t = anchors[below + 1], anchors[below + 2], position - below
  local function mix(channel) return math.floor(from[channel] + (to[channel] - from[channel]) * t + 0.5) end
  return mix(1), mix(2), mix(3)
end

--- Whether black text reads better than white on a colour.
function palette.is_bright(red, green, blue) return 0.299 * red + 0.587 * green + 0.114 * blue > 140 end

return palette
