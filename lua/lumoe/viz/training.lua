--- The curves of a training run, out of the records of its metrics.jsonl.
local options = require 'lumoe.options'

local POINTS = 800 -- more would not be seen, and would make the page heavy

local function number(value) return type(value) == 'number' and value - value == 0 end

local OVER = { -- what a picture goes over: field, its name on the axis, how many make one there
  step = { 'step', 'step', 1 },
  tokens = { 'tokens', 'million tokens', 1e6 },
  minutes = { 'seconds', 'minutes', 60 },
}

-- Means over neighbouring records, at most POINTS of them, where there is such a number.
local function thinned(records, field, over)
  local steps, values = {}, {}
  for _, record in ipairs(records) do
    if number(record[over[1]]) and number(record[field]) then
      steps[#steps + 1], values[#values + 1] = record[over[1]] / over[3], record[field]
    end
  end
  local every, x, y = math.ceil(#steps / POINTS), {}, {}
  for from = 1, #steps, math.max(every, 1) do
    local to = math.min(from + every - 1, #steps)
    local sum = 0
    for i = from, to do sum = sum + values[i] end
    x[#x + 1], y[#y + 1] = steps[to], sum / (to - from + 1)
  end
  return x, y
end

-- Means over a window of about a fortieth of the run, centred, so that a falling curve is not drawn late.
local function smoothed(y)
  local half, before, out = math.ceil(#y / 80), { [0] = 0 }, {}
  for i = 1, #y do before[i] = before[i - 1] + y[i] end
  for i = 1, #y do
    local from, to = math.max(i - half, 1), math.min(i + half, #y)
    out[i] = (before[to] - before[from - 1]) / (to - from + 1)
  end
  return out
end

local CURVES = { -- field, title, what a unit is multiplied with, smoothed
  { 'loss', 'Loss', 1, true },
  { 'valid_loss', 'Validation loss', 1 },
  { 'tokens_per_s', 'Tokens per second', 1, true },
  { 'dropped', 'Dropped routes (%)', 100, true },
  { 'lr', 'Learning rate', 1 },
  { 'grad_norm', 'Gradient norm', 1, true },
}

-- One run's line in a picture, over its values as they are.
local function series_of(run, curve, over, alone)
  local field, _, factor, smooth = unpack(curve)
  local x, y = thinned(run.records, field, over)
  if #x == 0 then return {} end
  for i = 1, #y do y[i] = factor * y[i] end
  if not smooth or #x < 40 then return { { name = run.name, x = x, y = y } } end
  local line = { name = run.name, x = x, y = smoothed(y) }
  return alone and { { x = x, y = y, faint = true }, line } or { line }
end

--- Curves of loss, speed, drops, learning rate and gradient norm, as far as the records have them.
---@param records table[]  `log.read_jsonl(path)`: step, loss, valid_loss, tokens_per_s, lr, grad_norm,
---  dropped (a fraction), tokens and seconds so far; or several runs to compare, `{ name = …, records = … }` each
---@param over string?  'step' (by default), 'tokens' or 'minutes'
---@return table[] curves  what `viz.curve` and `viz.report` take: a list, and each under its field's name
local function training_curves(records, over)
  local axis = OVER[over or 'step'] or options.raise('training_curves', "over '%s'; there are step, tokens and minutes", over)
  local runs = records[1] and records[1].records and records or { { records = records } }
  local curves = {}
  for _, curve in ipairs(CURVES) do
    local series = {}
    for _, run in ipairs(runs) do
      for _, line in ipairs(series_of(run, curve, axis, #runs == 1)) do series[#series + 1] = line end
    end
    if #series > 0 then
      local drawn = { title = curve[2], xlabel = axis[2], series = series }
      curves[#curves + 1], curves[curve[1]] = drawn, drawn
    end
  end
  return curves
end

return training_curves
