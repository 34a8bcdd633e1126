--- layouts.lua LAYOUT FROM STEPS SAVE OUT: trains a small language model under a layout, as layouts_spec asks.
--
--   LAYOUT  tp=2,ep=2,etp=1,zero=1/2,offload=optimizer,precision=bf16,moments=bf16; what is left out is 1, 0, none, f32, f32
--   FROM    a checkpoint to go on from, or '-'
--   STEPS   as 1-3: what is trained, the numbers being those of the unbroken run
--   SAVE    where a checkpoint is saved, or '-'; before the steps when there is FROM, after them else
--   OUT     the file that rank 0 writes losses and norms to
local lumoe = require 'lumoe'
local LanguageModel = require 'recipes.check_layouts.model'
local random = require 'lumoe.random'
local checkpoint, dist, optim = lumoe.checkpoint, lumoe.dist, lumoe.optim

local OPTS = { dim = 16, heads = 4, hidden = 24, layers = 3, vocab = 30, experts = 6, top_k = 2, capacity = 1.25, noise = 0.1,
  select = 'random', dropout = 0.1, batch = 6, time = 10 }

local layout = {}
for key, value in arg[1]:gmatch '(%w+)=([^,]+)' do layout[key] = tonumber(value) or value end
local from, first, last, save, out = arg[2], arg[3]:match '(%d+)', arg[3]:match '(%d+)$', arg[4], arg[5]

local dense, expert = (layout.zero or '0/0'):match '(%d)/(%d)'
local mesh = dist.mesh { tp = layout.tp, ep = layout.ep, etp = layout.etp, offload = layout.offload,
  zero = { dense = tonumber(dense), expert = tonumber(expert) } }

-- A model that goes on starts from other weights than the one that it will be.
lumoe.manual_seed(from == '-' and 1 or 99)
local model = LanguageModel(OPTS, mesh, {}):initialize()
model:to(layout.precision or 'f32')
for _, p in ipairs(model:named_parameters()) do p.spec.mesh = p.spec.mesh or mesh end
dist.shard(model)
local optimizer = optim.AdamW(model:named_parameters(), { lr = 3e-3, moments = layout.moments })

local function rows(value, at, count)
  if lumoe.is_tensor(value) then return value:narrow(0, at, count) end
  local part = {}
  for key, inner in pairs(value) do part[key] = rows(inner, at, count) end
  return part
end

local function step(number)
  local loss
  random.step(number)
  lumoe.scope(function()
    local whole = LanguageModel.batch(OPTS)
    local part = rows(whole, dist.share(OPTS.batch, mesh.data.rank, mesh.data.size))
    local mine = model:loss(part, whole, whole)
    mine:backward()
    loss = dist.reduce_number(mine:item(), 'sum', mesh.data)
  end)
  dist.reduce_gradients(model)
  local norm = dist.grad_norm(model)
  optimizer:step { grad_scale = optim.clip_scale(norm, 1) }
  optimizer:zero_grad()
  return loss, norm
end

local function keep(number)
  if save ~= '-' then checkpoint.save(save, { model = model, optimizer = optimizer, step = number, extra = { data = 'here' } }) end
end

if from ~= '-' then
  local saved = checkpoint.load(from, { model = model, optimizer = optimizer })
  assert(saved.step == first - 1 and saved.extra.data == 'here' and saved.optimizer == 'loaded')
  keep(saved.step)
end
local lines = {}
for number = first, last do lines[#lines + 1] = ('%.9g %.9g'):format(step(number)) end
if from == '-' then keep(tonumber(last)) end
if dist.rank() == 0 then
  local file = assert(io.open(out, 'w'))
  file:write(table.concat(lines, '\n'), '\n')
  file:close()
end
dist.barrier()
