--- ranks.lua ACT DIR EP [OWNERS]: saves or loads a model with experts spread over ranks, as ranks_spec asks.
-- OWNERS is the rank of each expert, as in 1,0,0,1. Every tensor is a function of its initial weights, which
-- depend on no layout: so what is loaded can be compared with what this layout would have drawn itself.
local lumoe = require 'lumoe'
local checkpoint, dist, moe, nn, optim = lumoe.checkpoint, lumoe.dist, lumoe.moe, lumoe.nn, lumoe.optim

local act, dir, ep, owners = arg[1], arg[2], tonumber(arg[3]), arg[4]
local EXPERTS = 6

local function make(dtype)
  local owner
  if owners then
    owner = {}
    for rank in owners:gmatch '%d+' do owner[#owner + 1] = tonumber(rank) end
  end
  local model = nn.class 'Model' {}
  model.input = nn.Linear { 4, 8 }
  model.layer = moe.Layer {
    dim = 8, experts = moe.FFN { experts = EXPERTS, hidden = 5, bias = true },
    router = moe.routers.top_k { dim = 8, top_k = 2 }, mesh = dist.mesh { ep = ep }, owner = owner,
  }
  model:initialize():to(dtype or 'f32')
  local optimizer = optim.AdamW(model:named_parameters(), {})
  for _, p in ipairs(model:named_parameters()) do
    local state = optimizer.state[p.name]
    state.m:copy_(p.tensor:detach() * 2)
    state.v:copy_(p.tensor:detach() * p.tensor:detach())
  end
  optimizer.steps = 7
  return model, optimizer
end

local function same(name, a, b)
  assert(a.dtype == b.dtype and a:numel() == b:numel(), name)
  if a:numel() > 0 then assert((a:float() - b:float()):abs():max():item() == 0, name .. ' differs') end
end

-- What is loaded equals what the seed of the saved model gives under this layout.
local function check_load(path)
  lumoe.manual_seed(11)
  local wanted, wanted_state = make()
  lumoe.manual_seed(22)
  local model, optimizer = make()
  optimizer.steps = 0
  local saved = checkpoint.load(path, { model = model, optimizer = optimizer })
  assert(saved.step == 3 and saved.extra.position == 640 and optimizer.steps == 7 and saved.optimizer == 'loaded')
  for name, t in pairs(model:state()) do same(name, t:detach(), wanted:state()[name]:detach()) end
  for name, t in pairs(optimizer:tensors()) do same(name, t, wanted_state:tensors()[name]) end
end

local acts = {}

function acts.save()
  lumoe.manual_seed(11)
  local model, optimizer = make()
  checkpoint.save(dir, { model = model, optimizer = optimizer, step = 3, extra = { position = 640 } })
end

function acts.load() check_load(assert(checkpoint.latest(dir))) end

-- The last rank cannot write: no rank may believe that it could, and the former checkpoint stays.
local function unwritten(spoil, sentence)
  acts.save()
  local model = make()
  if dist.rank() == dist.world_size() - 1 then spoil() end
  local ok, message = pcall(checkpoint.save, dir, { model = model, step = 4 })
  assert(not ok and message:find(sentence, 1, true) and message:find('ranks.lua', 1, true), message)
  dist.barrier()
  assert(checkpoint.latest(dir):match 'checkpoint%-3$')
  assert(not require('lfs').attributes(dir .. '/checkpoint-4.part'))
  acts.load()
end

function acts.fail()
  unwritten(function()
    require('lumoe.checkpoint.safetensors').write = function(path) error(path .. ': no disk here', 0) end
  end, 'no disk here')
end

-- The system itself refuses what goes past the first kilobyte of a file, as it does on a full disk.
function acts.full()
  unwritten(function()
    local resource, signal = require 'posix.sys.resource', require 'posix.signal'
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    local limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit.rlim_cur = 1024
    assert(resource.setrlimit(resource.RLIMIT_FSIZE, limit) == 0)
  end, 'File too large')
end

-- One rank's file is damaged: all ranks hear of it, and none has changed its model.
function acts.damaged()
  local model = make()
  local weight = model.input.weight
  weight:detach():fill_(1)
  local ok, message = pcall(checkpoint.load, checkpoint.latest(dir), { model = model })
  assert(not ok and message:find('model-00002-of-00002.safetensors: ', 1, true), message)
  assert(weight:min():item() == 1)
end

acts[act]()
dist.barrier()
if dist.rank() == 0 then print 'all well' end
