--- An MoE layer in plain Lua numbers (doubles), one token at a time: nothing is shared with the real one.
local naive = {}

local activations = {
  relu = function(x) return math.max(x, 0) end,
  silu = function(x) return x / (1 + math.exp(-x)) end,
  gelu_tanh = function(x)
    local u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1 + (math.exp(2 * u) - 1) / (math.exp(2 * u) + 1))
  end,
}

local function apply(weight, bias, x)
  local y = {}
  for o, row in ipairs(weight) do
    local sum = bias and bias[o] or 0
    for i, w in ipairs(row) do sum = sum + w * x[i] end
    y[o] = sum
  end
  return y
end

local function activate(name, h)
  local y = {}
  if name == 'swiglu' then
    for i = 1, #h / 2 do y[i] = activations.silu(h[i]) * h[#h / 2 + i] end
  else
    for i, v in ipairs(h) do y[i] = activations[name](v) end
  end
  return y
end

function naive.softmax(row)
  local top, sum, y = math.max(unpack(row)), 0, {}
  for i, v in ipairs(row) do
    y[i] = math.exp(v - top)
    sum = sum + y[i]
  end
  for i = 1, #y do y[i] = y[i] / sum end
  return y
end

--- p: up, down, up_bias, down_bias, gate (nested tables). ids[t][s] from 0; kept[t][s]; valid[t].
--- Gives y [tokens][dim] and the router's scores.
function naive.layer(p, x, ids, kept, valid, activation, normalize)
  local out, all = {}, {}
  for t, row in ipairs(x) do
    local scores, sum = naive.softmax(apply(p.gate, nil, row)), 0
    all[t], out[t] = scores, {}
    for i = 1, #row do out[t][i] = 0 end
    for s, id in ipairs(ids[t]) do
      if normalize == 'chosen' or (normalize == 'kept' and kept[t][s]) then sum = sum + scores[id + 1] end
    end
    if not normalize then sum = 1 end
    for s, id in ipairs(ids[t]) do
      if valid[t] and kept[t][s] then
        local e = id + 1
        local h = activate(activation, apply(p.up[e], p.up_bias and p.up_bias[e], row))
        local y = apply(p.down[e], p.down_bias and p.down_bias[e], h)
        for i = 1, #row do out[t][i] = out[t][i] + scores[e] / sum * y[i] end
      end
    end
  end
  return out, all
end

return naive
