--- Layers in plain Lua, in doubles, from the papers' formulas: what the specs of nn compare with.
-- A matrix is a table of rows; weights come from the module under test, as tables.
local naive = {}

function naive.numbers(tensor) return tensor:detach():totable() end

--- y = x W' + b for one row.
function naive.linear(row, weight, bias)
  local y = {}
  for o, w in ipairs(weight) do
    local sum = bias and bias[o] or 0
    for i, v in ipairs(row) do sum = sum + v * w[i] end
    y[o] = sum
  end
  return y
end

function naive.layer_norm(row, weight, bias, eps)
  local mean, variance = 0, 0
  for _, v in ipairs(row) do mean = mean + v / #row end
  for _, v in ipairs(row) do variance = variance + (v - mean) ^ 2 / #row end
  local y = {}
  for i, v in ipairs(row) do y[i] = (v - mean) / math.sqrt(variance + eps) * weight[i] + bias[i] end
  return y
end

function naive.rms_norm(row, weight, eps)
  local square, y = 0, {}
  for _, v in ipairs(row) do square = square + v * v / #row end
  for i, v in ipairs(row) do y[i] = v / math.sqrt(square + eps) * weight[i] end
  return y
end

-- erf to 1e-7 relative to 1 (Abramowitz & Stegun 7.1.26), for gelu.
local function erf(x)
  local t = 1 / (1 + 0.3275911 * math.abs(x))
  local y = 1 - ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    * math.exp(-x * x)
  return x < 0 and -y or y
end

local function silu(x) return x / (1 + math.exp(-x)) end

naive.activations = {
  relu = function(x) return math.max(0, x) end,
  gelu = function(x) return 0.5 * x * (1 + erf(x / math.sqrt(2))) end,
  gelu_tanh = function(x)
    local u = math.sqrt(2 / math.pi) * (x + 0.044715 * x ^ 3)
    return 0.5 * x * (1 + (math.exp(2 * u) - 1) / (math.exp(2 * u) + 1))
  end,
  silu = silu,
}

--- down(activation(up(x))) for one row; swiglu: silu of the first half times the second.
function naive.feed_forward(row, p, activation)
  local h = naive.linear(row, p.up, p.up_bias)
  if activation == 'swiglu' then
    local half = {}
    for i = 1, #h / 2 do half[i] = silu(h[i]) * h[#h / 2 + i] end
    h = half
  else
    for i, v in ipairs(h) do h[i] = naive.activations[activation](v) end
  end
  return naive.linear(h, p.down, p.down_bias)
end

--- Rotary positions (Su et al. 2021) in the halves form: dims i and i + d/2 turn together.
function naive.rope(row, position)
  local half, y = #row / 2, {}
  for i = 1, half do
    local angle = position * 10000 ^ (-(i - 1) / half)
    local a, b = row[i], row[half + i]
    y[i], y[half + i] = a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)
  end
  return y
end

local function cut(row, from, n)
  local y = {}
  for i = 1, n do y[i] = row[from + i] end
  return y
end

--- One sentence: queries, keys and values are lists of rows [dim]; may(i, j): query i sees key j.
function naive.attention(q, k, v, heads, may, rope)
  local dim, out = #(q[1] or {}), {}
  local width = dim / heads
  for i in ipairs(q) do
    out[i] = {}
    for h = 0, heads - 1 do
      local function head(row, position)
        local part = cut(row, h * width, width)
        return rope and naive.rope(part, position - 1) or part
      end
      local query, weights, total = head(q[i], i), {}, 0
      for j in ipairs(k) do
        if may(i, j) then
          local key, dot = head(k[j], j), 0
          for d = 1, width do dot = dot + query[d] * key[d] end
          weights[j] = math.exp(dot / math.sqrt(width))
          total = total + weights[j]
        end
      end
      for d = 1, width do
        local sum = 0
        for j, w in pairs(weights) do sum = sum + w / total * v[j][h * width + d] end
        out[i][h * width + d] = sum
      end
    end
  end
  return out
end

--- Every number of two nested tables.
function naive.near(want, got, tolerance, where)
  where = where or ''
  if type(want) == 'number' then
    assert(type(got) == 'number' and math.abs(want - got) <= tolerance * (1 + math.abs(want)),
      ('%s: wanted %s, got %s'):format(where, want, tostring(got)))
    return
  end
  assert(#want == #got, ('%s: wanted %d, got %d'):format(where, #want, #got))
  for i = 1, #want do naive.near(want[i], got[i], tolerance, ('%s[%d]'):format(where, i)) end
end

return naive
