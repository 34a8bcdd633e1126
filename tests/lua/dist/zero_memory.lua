-- Run by zero_spec.lua on two ranks: what the books say of a model large enough that rounding up does not
-- show, at every stage of a step.
local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'
local dist, moe, nn, optim = lumoe.dist, lumoe.moe, lumoe.nn, lumoe.optim

local DIM, HIDDEN, EXPERTS, LAYERS, TOKENS = 64, 128, 4, 4, 8
local R = dist.world_size()

-- Model of LAYERS layers; `dtype` bytes of a parameter.
local function build(dense, expert, dtype)
  local mesh = dist.mesh { zero = { dense = dense, expert = expert } }
  local Model = nn.class 'Model'
  function Model:init()
    self.layers = {}
    for i = 1, LAYERS do
      self.layers[i] = nn.TransformerEncoderLayer { dim = DIM, heads = 2, feed_forward = moe.Layer { dim = DIM, mesh = mesh,
        router = moe.routers.top_k { dim = DIM, top_k = 1 }, experts = moe.FFN { experts = EXPERTS, hidden = HIDDEN } } }
    end
    self.head = nn.Linear { DIM, DIM }
  end
  function Model:forward(x)
    for _, layer in ipairs(self.layers) do x = layer(x) end
    return self.head(x):square():sum()
  end
  local model = nn.as(dtype, Model)
  model:initialize()
  return dist.shard(model, mesh)
end

local function live()
  collectgarbage()
  collectgarbage()
  return lumoe.memory().live
end

-- Bytes wanted, within 3 %: buffers are rounded up, and some are odd.
local function near(what, got, want)
  if math.abs(got - want) > 0.03 * want + 4096 then
    error(('%s: %d bytes, not %d'):format(what, got, want), 0)
  end
end

local function examine(dense, expert, dtype)
  local size = dtype == 'bf16' and 2 or 4
  local before = live()
  local model = build(dense, expert, dtype)
  local count = { dense = 0, expert = 0 }
  for _, p in ipairs(model:named_parameters()) do count[p.spec.group] = count[p.spec.group] + p.tensor:numel() end
  -- Elements of both kinds that are here when those of a stage from `from` on are divided.
  local function share(from)
    return count.dense / (dense >= from and R or 1) + count.expert / (expert >= from and R or 1)
  end
  local name = ('%s, dense %d, expert %d: '):format(dtype, dense, expert)
  near(name .. 'parameters', live().parameters - before.parameters, size * share(3))

  local optimizer = optim.AdamW(model:named_parameters(), {})
  near(name .. 'optimizer', live().optimizer - before.optimizer, (dtype == 'bf16' and 12 or 8) * share(1))

  for step = 1, 2 do
    lumoe.reset_peak_memory()
    lumoe.scope(function()
      local x = lumoe.randn(1, TOKENS, DIM, { site = 'x' .. step })
      if dtype == 'bf16' then x = x:to 'bf16' end
      model(x):backward { last = true }
    end)
    dist.reduce_gradients(model)
    near(name .. 'gradients', live().gradients - before.gradients, 4 * share(2))
    -- At stage 3 no more is ever whole than one layer, with its experts, and the head.
    local layer = { dense = count.dense / LAYERS, expert = count.expert / LAYERS }
    local most = size * share(3) + (dense == 3 and size * (layer.dense + DIM * DIM) or 0) + (expert == 3 and size * layer.expert or 0)
    local peak = lumoe.memory().peak.parameters - before.parameters
    assert(peak <= 1.03 * most + 4096, ('%speak of parameters: %d bytes, not %d'):format(name, peak, most))
    -- And of gradients, at stages 2 and 3, what is divided and one unit's besides.
    if dense >= 2 and expert >= 2 then
      local gradients = lumoe.memory().peak.gradients - before.gradients
      most = 4 * (share(2) + layer.dense + layer.expert + DIM * DIM)
      assert(gradients <= 1.03 * most + 4096, ('%speak of gradients: %d bytes, not %d'):format(name, gradients, most))
    end
    optimizer:step {}
    optimizer:zero_grad()
    near(name .. 'gradients afterwards', live().gradients - before.gradients, 0)
    near(name .. 'parameters afterwards', live().parameters - before.parameters, size * share(3))
  end
end

C.lm_shard_set_bucket(2 ^ 17)
for _, dtype in ipairs { 'f32', 'bf16' } do
  for _, stages in ipairs { { 0, 0 }, { 1, 1 }, { 2, 2 }, { 3, 3 }, { 0, 3 }, { 3, 1 } } do
    examine(stages[1], stages[2], dtype)
  end
end
if dist.rank() == 0 then print 'all well' end
