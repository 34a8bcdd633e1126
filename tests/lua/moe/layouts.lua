-- Run by layouts_spec.lua on 1, 2 and 4 ranks: a few training steps of a small model with all that is
-- random switched on. Every rank takes its share of the same global batch. Each rank writes what it
-- knows to FILE.rank: losses, norms, statistics, and every gradient, an expert's under its own id.
package.path = './?.lua;' .. package.path
local lumoe = require 'lumoe'
local random = require 'lumoe.random'
local whole_of = require 'tests.lua.dist.whole'
local dist, moe, nn = lumoe.dist, lumoe.moe, lumoe.nn

local file, ep, router, deal, exchange = arg[1], tonumber(arg[2]), arg[3], arg[4], arg[5]
local mesh = dist.mesh { ep = ep, tp = tonumber(arg[6]), etp = tonumber(arg[7]) }
local in_parts = exchange == 'parts' -- and forgotten, and computed again
if in_parts then exchange = { once = true, parts = 3 } end
if exchange == 'shadow' then exchange = { shadow = 0.95 } end
local owner = deal == 'mixed' and {} or nil -- experts spread any which way, too
local BATCH, TIME, DIM, EXPERTS, STEPS = 10, 7, 8, 6, 3
local rank, size = mesh.data.rank, mesh.data.size
for e = 1, owner and EXPERTS or 0 do owner[e] = (e * e) % ep end

local routers = {
  noisy = function() return moe.routers.noisy_top_k { dim = DIM, top_k = 2 } end,
  switch = function() return moe.routers.switch { dim = DIM } end,
  top_k = function() return moe.routers.top_k { dim = DIM, top_k = 3 } end,
}
local capacity = { noisy = { factor = 0.7 }, switch = { factor = 0.8, select = 'probability' },
  top_k = { factor = 0.6, select = 'position' } }

lumoe.manual_seed(11)
local Model = nn.class 'Model'
function Model:init()
  for i = 1, 2 do
    self[i] = moe.Layer { dim = DIM, experts = moe.FFN { experts = EXPERTS, hidden = 12, activation = 'swiglu', bias = true },
      router = routers[router](), capacity = capacity[router], mesh = mesh, owner = owner, exchange = exchange, recompute = in_parts,
      balance = { moe.balance.load(0.05), moe.balance.z(0.01), moe.balance.importance(0.02) } }
  end
  self.drop = nn.Dropout(0.2)
  self.head = nn.Linear { DIM, 5 }
end
function Model:forward(x, tags)
  local y, first = self[1](x, tags)
  local z, second = self[2](x + self.drop(y, tags), tags)
  return self.head(x + y + z), first + second
end
local model = Model()
model:initialize()

-- The whole batch, the same on every rank; then this rank's sequences.
local function global_batch(step)
  random.step(step)
  local x = lumoe.randn(BATCH, TIME, DIM, { site = 'test.batch' })
  local valid, tokens, language = {}, {}, {}
  for b = 0, BATCH - 1 do
    valid[b + 1], tokens[b + 1], language[b + 1] = {}, {}, b % 3
    for t = 0, TIME - 1 do
      valid[b + 1][t + 1] = t < 2 + (b * 3) % 6 and 1 or 0
      tokens[b + 1][t + 1] = b * 2 ^ 32 + t
    end
  end
  return x, { valid = lumoe.tensor(valid, { dtype = 'u8' }), tokens = lumoe.tensor(tokens, { dtype = 'i64' }),
    language = lumoe.tensor(language, { dtype = 'i32' }) }
end

-- even: slices; uneven: rank 0 holds none, the last one most; mixed: not even neighbours.
local function mine()
  local rows = {}
  for b = 0, BATCH - 1 do
    local holder
    if deal == 'even' then holder = math.floor(b * size / BATCH)
    elseif deal == 'uneven' then holder = size == 1 and 0 or math.max(1, size - 1 - math.floor(b / 7))
    else holder = (b * 7 + 3) % size end
    if holder == rank then rows[#rows + 1] = b end
  end
  return rows
end

local function take(t, rows)
  if #rows == 0 then return t[{ { 0, 0 } }] end
  local parts = {}
  for i, b in ipairs(rows) do parts[i] = t[{ { b, b + 1 } }] end
  return lumoe.cat(parts, 0)
end

local out = assert(io.open(file .. '.' .. dist.rank(), 'w'))
local function write(name, value)
  if lumoe.is_tensor(value) then value = value:flatten():totable() end
  if type(value) == 'table' then
    for i, v in ipairs(value) do value[i] = ('%.9g'):format(v) end
    value = table.concat(value, ' ')
  else
    value = ('%.9g'):format(value)
  end
  out:write(name, ' = ', value, '\n')
end

for step = 1, STEPS do
  if step == STEPS then -- how rows travel may change between steps
    for i = 1, 2 do model[i].exchange = model[i].exchange.once and 'rows' or 'once' end
  end
  local x, tags = global_batch(step)
  local rows = mine()
  local own = {}
  for name, tag in pairs(tags) do own[name] = take(tag, rows) end
  local y, aux = model(take(x, rows), own)
  -- All targets count: the loss is divided by the number of valid tokens of all ranks.
  local total = tags.valid:float():sum():item()
  local per_token = y:square():sum(-1) + y:sum(-1) * 0.3
  local loss = (per_token * own.valid:float()):sum() / total + aux
  loss:backward()
  dist.reduce_gradients(model)
  write('loss ' .. step, dist.reduce_number(loss:item(), 'sum', mesh.data))
  write('norm ' .. step, dist.grad_norm(model))
  for i = 1, 2 do
    write(('capacity %d %d'):format(step, i), model[i].last_plan.capacity or -1)
    assert(type(exchange) ~= 'table' or not exchange.shadow or step == STEPS or #model[i].last_plan:shadows() > 0)
    write(('dropped %d %d'):format(step, i), model[i].last_plan:dropped())
    write(('kept %d %d'):format(step, i), model[i].last_plan:kept())
  end
  for _, p in ipairs(model:named_parameters()) do
    if p.spec.group == 'expert' and mesh.etp > 1 then -- slices, put together
      local grad = whole_of(p.tensor.grad, p)
      for id = 0, EXPERTS - 1 do write(('grad %d %s %d'):format(step, p.name, id), grad[id]) end
    elseif p.spec.group == 'expert' then
      for i, id in ipairs(model[1].last_plan:local_experts()) do
        write(('grad %d %s %d'):format(step, p.name, id), p.tensor.grad[i - 1])
      end
    else
      write(('grad %d %s'):format(step, p.name), p.tensor.grad)
    end
    p.tensor.grad = nil
  end
end

for i = 1, 2 do
  local use = model[i]:stats()
  write('tokens ' .. i, use.tokens)
  write('load ' .. i, use.tokens_per_expert)
  for language = 0, 2 do
    write(('load %d language %d'):format(i, language), use.by.language[language].tokens_per_expert)
    write(('dropped %d language %d'):format(i, language), use.by.language[language].dropped)
  end
end
out:close()
