--- What one operation costs: `lumoe tests/bench/ops.lua [PATTERN]` prints nanoseconds per call.
--
-- First tensors of 6 elements: the host's own work (a handle, headers, a node of the tape), which
-- should stay under 250 ns for a recorded operation in a scope. Then sizes of a small model's layer,
-- where the kernels should be what counts; `backward` is the step back through it.
local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'

local pattern = arg[1] or ''
local REPEATS = 5

local seconds = require('lumoe.log.terminal').clock

--- Nanoseconds per call of f: the best of some runs, so that a busy machine counts least.
local function measure(f, calls)
  local best = math.huge
  for _ = 1, REPEATS do
    local start = seconds()
    for _ = 1, calls / 100 do
      lumoe.scope(function() for _ = 1, 100 do f() end end)
    end
    best = math.min(best, (seconds() - start) / calls)
  end
  return best * 1e9
end

local function line(name, f, calls)
  if not name:find(pattern, 1, true) then return end
  measure(f, 100)
  print(('%-44s %12.0f ns'):format(name, measure(f, calls)))
end

-- ---- the host's work ----------------------------------------------------------------------

local x = lumoe.ones({ 2, 3 }, { requires_grad = true })
local plain, row = lumoe.ones(2, 3), lumoe.ones(3)
local w = lumoe.ones({ 3, 3 }, { requires_grad = true })
local ids = lumoe.tensor({ 0, 1, 1 }, { dtype = 'i64' })

print('small, recorded')
for _, case in ipairs {
  { 'x + 1', function() return x + 1 end }, { 'x + x', function() return x + x end },
  { 'x * x', function() return x * x end }, { 'x * row (broadcast)', function() return x * row end },
  { 'relu', function() return x:relu() end }, { 'softmax', function() return x:softmax(-1) end },
  { 'layer_norm', function() return x:layer_norm(row, row) end }, { 'sum', function() return x:sum(1) end },
  { 'transpose', function() return x:transpose(0, 1) end }, { 'x[1]', function() return x[1] end },
  { 'reshape', function() return x:reshape(3, 2) end }, { 'index_select', function() return x:index_select(1, ids) end },
  { 'linear (oneDNN)', function() return x:linear(w) end },
} do line(case[1], case[2], 100000) end

print 'small, not recorded'
line('plain + 1', function() return plain + 1 end, 100000)
line('plain * row', function() return plain * row end, 100000)
line('plain:item()', function() return row[0]:item() end, 100000)

-- ---- with kernels -------------------------------------------------------------------------

print(('\n%d threads'):format(C.lm_threads()))
for _, dtype in ipairs { 'f32', 'bf16' } do
  local function leaf(...)
    local t = lumoe.randn({ ... }, { dtype = dtype })
    t.requires_grad = true
    return t
  end
  local h, weight, bias = leaf(2048, 256), leaf(1024, 256), leaf(1024)
  local wide, scale = leaf(2048, 1024), leaf(256)
  local q, logits = leaf(32, 4, 64, 64), leaf(1024, 8000)
  local targets = lumoe.zeros({ 1024 }, { dtype = 'i64' })
  local tokens = (lumoe.rand(2048) * 8000):long()
  local table_ = leaf(8000, 256)
  for _, case in ipairs {
    { 'linear [2048, 256] to 1024', function() return h:linear(weight, bias) end },
    { 'x + x [2048, 1024]', function() return wide + wide end }, { 'gelu [2048, 1024]', function() return wide:gelu() end },
    { 'swiglu [2048, 1024]', function() return wide:swiglu() end },
    { 'layer_norm [2048, 256]', function() return h:layer_norm(scale, scale) end },
    { 'rms_norm [2048, 256]', function() return h:rms_norm(scale) end },
    { 'softmax [2048, 1024]', function() return wide:softmax(-1) end },
    { 'attention [32, 4, 64, 64] causal', function() return q:attention(q, q, { causal = true }) end },
    { 'embedding 2048 of [8000, 256]', function() return table_:embedding(tokens) end },
    { 'cross_entropy [1024, 8000]', function() return logits:cross_entropy(targets) end },
    { 'topk 2 of [2048, 256]', function() return (h:topk(2)) end },
  } do
    local name, f = dtype .. ' ' .. case[1], case[2]
    if name:find(pattern, 1, true) then
      local function timed(g) -- best of some single calls
        local best = math.huge
        for _ = 1, 8 do
          lumoe.scope(function()
            local start = seconds()
            g()
            best = math.min(best, seconds() - start)
          end)
        end
        return best * 1e6
      end
      local forward = timed(f)
      local both = timed(function()
        local y = f()
        y:backward { grad = y:detach() }
      end)
      print(('%-44s %9.0f µs  backward %9.0f µs'):format(name, forward, both - forward))
    end
  end
end
