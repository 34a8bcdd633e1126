--- A heat map as text: coloured cells with their numbers on a terminal, plain numbers elsewhere.
--
--   encoder.1      0   1   2   3
--           de    12  31   ·  57
--           fr    40  22  21  17
--
-- Cells are four columns wide where the map fits, else two: a colour, or a digit, tenths of the largest.
local options = require 'lumoe.options'
local terminal = require 'lumoe.log.terminal'
local grid = require 'lumoe.viz.grid'
local palette = require 'lumoe.viz.palette'

local RESET = '\27[0m'

local function right(text, width) return (' '):rep(width - terminal.columns(text)) .. text end

local function paint(text, fraction, colors)
  local red, green, blue = palette.at(palette.dark, fraction)
  local ink = palette.is_bright(red, green, blue) and 16 or 231
  if colors == 256 then -- a 6 × 6 × 6 cube
    local function level(channel) return math.floor(channel / 255 * 5 + 0.5) end
    local index = 16 + 36 * level(red) + 6 * level(green) + level(blue)
    return ('\27[38;5;%d;48;5;%dm%s'):format(ink, index, text)
  end
  return ('\27[38;5;%d;48;2;%d;%d;%dm%s'):format(ink, red, green, blue, text)
end

local function digit(fraction)
  return fraction == 0 and '·' or ('%d'):format(math.min(9, math.floor(10 * fraction)))
end

-- One cell: `size` columns of text.
local function cell(map, value, size, colors)
  local known = map.finite(value)
  local fraction = known and value / map.max or 0
  if colors > 0 and known then
    return paint(size == 2 and '  ' or right(map.text(value), 3) .. ' ', fraction, colors)
  end
  local text = size == 4 and map.text(value) or known and digit(fraction) or '?'
  return (colors > 0 and RESET or '') .. (size == 4 and right(text, 3) .. ' ' or right(text, 2))
end

-- Labels over the columns; where they are wider than a cell, only some.
local function heading(cols, from, to, size)
  local widest = 0
  for c = from, to do widest = math.max(widest, terminal.columns(tostring(cols[c]))) end
  local every = size == 4 and math.ceil((widest + 1) / 4) or 5
  local parts = {}
  for c = from, to, every do
    local room = math.min(every, to - c + 1) * size
    local label = terminal.cut(tostring(cols[c]), room)
    if every == 1 then
      parts[#parts + 1] = right(label, 3) .. ' '
    else
      parts[#parts + 1] = label .. (' '):rep(room - terminal.columns(label))
    end
  end
  return table.concat(parts)
end

local function legend(opts, map, size, colors)
  local low, high = grid.ends(opts, map.max)
  if colors == 0 then
    if size == 2 then return ('(digits: tenths of %s; · is zero)'):format(high) end
    return ('(%s· is zero)'):format(opts.normalize and 'percent of the row; ' or '')
  end
  local strip = {}
  for i = 0, 15 do strip[#strip + 1] = paint(' ', i / 15, colors) end
  return ('%s %s%s %s'):format(low, table.concat(strip), RESET, high)
end

local WANTED = {
  rows = 'table', cols = 'table', values = 'table', title = 'string?', normalize = 'string?', max = 'number?',
  colors = 'number?', width = 'number?', stream = 'any?',
}

--- A heat map for the terminal.
---@param opts table  rows, cols: table; values: number[][]; title: string?, normalize: 'rows'?, max: number?
---  rows, cols: labels; values[r][c]: zero or more, nil where unknown; normalize = 'rows': show percentages
---  of each row's sum; max: the value of the last colour (the largest value).
---  colors (0, 256, 2^24) and width replace what is found out about stream (stdout)
---@return string  lines, each ended
local function heatmap(opts)
  options.check('heatmap', opts, WANTED)
  local map = grid.prepare('heatmap', opts)
  local stream = opts.stream or io.stdout
  local colors, width = opts.colors or terminal.colors(stream), opts.width or terminal.width(stream)

  local label_width = 0
  for _, label in ipairs(opts.rows) do
    label_width = math.max(label_width, terminal.columns(tostring(label)))
  end
  local room = math.max(width - label_width - 3, 8)
  local size = #opts.cols * 4 <= room and 4 or 2
  local per_block = math.floor(room / size)
  if per_block < #opts.cols and per_block > 10 then per_block = per_block - per_block % 10 end

  local lines = { opts.title }
  for from = 1, math.max(#opts.cols, 1), per_block do
    local to = math.min(from + per_block - 1, #opts.cols)
    lines[#lines + 1] = (' '):rep(label_width + 2) .. heading(opts.cols, from, to, size)
    for r, label in ipairs(opts.rows) do
      local cells = { right(tostring(label), label_width), '  ' }
      for c = from, to do cells[#cells + 1] = cell(map, map.values[r][c], size, colors) end
      if colors > 0 then cells[#cells + 1] = RESET end
      lines[#lines + 1] = table.concat(cells)
    end
  end
  local key = legend(opts, map, size, colors)
  lines[#lines + 1] = colors == 0 and terminal.cut(key, width) or key
  for i, line in ipairs(lines) do lines[i] = line:gsub(' +$', '') end
  return table.concat(lines, '\n') .. '\n'
end

return heatmap
