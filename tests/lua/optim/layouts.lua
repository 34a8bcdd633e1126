--- layouts.lua DIR LAYOUT...: run by layouts_spec.lua. Under one layout after the other, a few steps on parameters cut in
-- every way; what there is then, state too, is saved as DIR/<layout's number>/checkpoint-<step>.
--
--   LAYOUT  tp=2,ep=2,etp=1,zero=1/2,offload=optimizer,dtype=bf16,masters=no; what is left out is 1, 0, none, f32, yes
--
-- Gradients come from one rank of those that sum them, zeros from the others: no sum may round.
local lumoe = require 'lumoe'
local part = require 'tests.lua.dist.part'
local random = require 'lumoe.random'
local checkpoint, dist, nn, optim = lumoe.checkpoint, lumoe.dist, lumoe.nn, lumoe.optim
local placement = dist.placement

local STEPS = 4

local Model = nn.class 'Model'
function Model:init(m)
  local function cut(count, group) return { { dist.share(count, group.rank, group.size) } } end
  local experts = { { dist.share(5, math.floor(m.expert.rank / m.etp), m.ep) } }
  local slice = m.etp > 1 and { { dist.share(7, m.expert.rank % m.etp, m.etp) } } or nil
  local function parameter(name, shape, opts)
    opts.init, opts.std, opts.mesh = 'normal', 1, m
    nn.parameter(self, name, shape, opts)
  end
  parameter('whole', { 53, 41 }, {})
  parameter('vector', { 3 }, {})
  parameter('columns', { 61, 7 }, { at = m.tp > 1 and { [0] = cut(61, m.tensor) } or nil })
  parameter('rows', { 11, 9 }, { at = m.tp > 1 and { [1] = cut(9, m.tensor) } or nil })
  parameter('up', { 5, 7, 19 }, { group = 'expert', at = { [0] = experts, [1] = slice } })
  parameter('bias', { 5, 3 }, { group = 'expert', at = { [0] = experts } })
end
function Model:loss(m)
  local total = 0
  for _, p in ipairs(self:named_parameters()) do
    local one = placement.replicas(p).rank == 0 and 1 or 0
    local g = part(lumoe.randn(p.spec.whole, { site = p.name }) * (one * m), p)
    total = total + (p.tensor:float() * g):sum()
  end
  return total
end

local function run(dir, text)
  local l = {}
  for key, value in text:gmatch '(%w+)=([^,]+)' do l[key] = tonumber(value) or value end
  local dense, expert = (l.zero or '0/0'):match '(%d)/(%d)'
  local mesh = dist.mesh { tp = l.tp, ep = l.ep, etp = l.etp, zero = { dense = tonumber(dense), expert = tonumber(expert) },
    offload = l.offload and { to = l.offload, bucket = 5000 } or nil }
  lumoe.manual_seed(5)
  local model = Model(mesh):initialize()
  model:to(l.dtype or 'f32')
  dist.shard(model, mesh)
  local optimizer = optim.AdamW(model:named_parameters(), { lr = 0.02, masters = l.masters ~= 'no', moments = 'bf16' })
  for step = 1, STEPS do
    random.step(step)
    lumoe.scope(function() model:loss(step):backward { last = true } end)
    dist.reduce_gradients(model)
    optimizer:step { grad_scale = 0.5 }
    optimizer:zero_grad()
  end
  checkpoint.save(dir, { model = model, optimizer = optimizer, step = STEPS })
end

for i = 2, #arg do run(('%s/%d'):format(arg[1], i - 1), arg[i]) end
