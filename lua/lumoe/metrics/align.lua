--- A table as text: the first column left, the others right, each as wide as it must be.

local function display_width(text) return #text:gsub('[\128-\191]', '') end

--- The lines of a table of texts, its heading first and underlined.
---@param heading string[]
---@param rows string[][]
---@param rule integer?  another line under this row
---@return string[] lines
local function align(heading, rows, rule)
  local widths, total = {}, -2
  for _, cells in ipairs { heading, unpack(rows) } do
    for c, cell in ipairs(cells) do widths[c] = math.max(widths[c] or 0, display_width(cell)) end
  end
  for _, width in ipairs(widths) do total = total + width + 2 end
  local function line(cells)
    local padded = {}
    for c, cell in ipairs(cells) do
      local padding = (' '):rep(widths[c] - display_width(cell))
      padded[c] = c == 1 and cell .. padding or padding .. cell
    end
    return table.concat(padded, '  ')
  end
  local lines = { line(heading), ('─'):rep(total) }
  for r, row in ipairs(rows) do
    lines[#lines + 1] = line(row)
    if r == rule and r < #rows then lines[#lines + 1] = ('─'):rep(total) end
  end
  return lines
end

return align
