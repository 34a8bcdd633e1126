--- What every heat map is given, checked and scaled: labels, and a number per row and column.
local options = require 'lumoe.options'

local grid = {}

local function finite(value)
  return type(value) == 'number' and value == value and math.abs(value) < math.huge
end

local function shares(row, columns)
  local sum, scaled = 0, {}
  for c = 1, columns do sum = sum + (finite(row[c]) and row[c] or 0) end
  for c = 1, columns do scaled[c] = finite(row[c]) and (sum > 0 and row[c] / sum or 0) or nil end
  return scaled
end

---@param who string  the function, for messages
---@param opts { rows: table, cols: table, values: number[][], normalize: 'rows'?, max: number? }
---  values[r][c] >= 0, unknown where nil or not finite; normalize = 'rows' makes counts shares of their row
---@return { values: number[][], max: number, text: fun(value: number): string }
function grid.prepare(who, opts)
  if #opts.values ~= #opts.rows then
    options.raise(who, '%d rows of values, but %d labels', #opts.values, #opts.rows)
  end
  if opts.normalize and opts.normalize ~= 'rows' then
    options.raise(who, "normalize must be 'rows' or nothing, not '%s'", tostring(opts.normalize))
  end
  local values, max = {}, opts.max or 0
  for r, row in ipairs(opts.values) do
    if #row > #opts.cols then
      options.raise(who, 'row %d has %d values, but there are %d labels', r, #row, #opts.cols)
    end
    values[r] = opts.normalize and shares(row, #opts.cols) or row
    for c = 1, #opts.cols do
      local value = values[r][c]
      if finite(value) and value < 0 then
        options.raise(who, 'value [%d][%d] is negative: %g', r, c, value)
      end
      if finite(value) and not opts.max then max = math.max(max, value) end
    end
  end
  local function text(value) -- at most three characters
    if not finite(value) then return '?' end
    if value == 0 then return '·' end
    if opts.normalize then return value < 0.005 and '<1' or ('%.0f'):format(100 * value) end
    return value < 9.95 and ('%.1f'):format(value) or value < 999.5 and ('%.0f'):format(value) or '>1k'
  end
  return { values = values, max = max > 0 and max or 1, text = text, finite = finite }
end

--- The key under a map: what the two ends of the scale stand for.
function grid.ends(opts, max)
  if opts.normalize then return '0%', ('%.0f%% of the row'):format(100 * max) end
  return '0', ('%.4g'):format(max)
end

return grid
