-- Run by invariance_spec.lua on two ranks: models with a mistake each, which check_layouts must find.
local lumoe = require 'lumoe'
local dist, moe, nn = lumoe.dist, lumoe.moe, lumoe.nn
local rank = dist.rank()
assert(dist.world_size() == 2)

local DIM, EXPERTS = 6, 4

-- Two experts with the very same scores: which of them comes first is up to `tie(mesh)`.
local function router(tie)
  return moe.Router {
    gate = nn.Linear { DIM, moe.EXPERTS, bias = false },
    route = function(self, x)
      local weight = lumoe.cat({ self.gate.weight[{ { 0, 1 } }], self.gate.weight[{ { 0, 3 } }] }, 0)
      local scores = x:linear(weight):softmax(-1)
      return { scores = scores, expert_ids = lumoe.full({ x:size(0), 1 }, tie, { dtype = 'i32' }) }
    end,
  }
end

local Model = nn.class 'Model'
function Model:init(mesh, mistake)
  local apart = mesh.dp > 1
  self.first = nn.Linear { DIM, DIM }
  self.layer = moe.Layer { dim = DIM, experts = moe.FFN { experts = EXPERTS, hidden = 8 }, mesh = mesh, normalize = false,
    router = router(apart and (mistake == 'tie' and 1 or mistake == 'route' and 3) or 0) }
  if apart and mistake == 'unsummed' then
    self.first._parameters.bias.mesh = dist.mesh { ranks = { rank } }
  elseif apart and mistake == 'missing' then
    self.extra = nn.Linear { 1, 4, bias = false }
    self.extra._parameters.weight.whole = { 8, 1 }
    self.extra._parameters.weight.at = { [0] = { { 0, 4 } } }
  elseif mistake == 'missing' then
    self.extra = nn.Linear { 1, 8, bias = false }
  elseif apart and mistake == 'refused' then
    error('no such layout', 0)
  end
end

local batch = { x = lumoe.randn({ 6, DIM }), y = lumoe.randn({ 6, DIM }) }

local function check(mistake, opts)
  local report = dist.check_layouts {
    model = function(mesh) return Model(mesh, mistake) end,
    loss = function(model, part, _, whole)
      local y, aux = model.layer(model.first(part.x))
      local count = mistake == 'scale' and part.x:size(0) or whole.x:size(0)
      local target = mistake == 'rows' and part.x:size(0) < 6 and part.y:flatten():reshape(DIM, -1):t() or part.y
      return ((y - target):square():sum() + (part.x:size(0) > 0 and 0 or 1)) / count + aux
    end,
    batch = batch, layouts = opts and opts.layouts or { { tp = 1, ep = 2, etp = 1 } }, steps = opts and opts.steps,
    each = function(row) assert(row.layout:find 'dp2') end,
  }
  return report, report.rows[1]
end

local function finds(mistake, ...)
  local report, row = check(mistake)
  assert(not report.ok, mistake)
  local said = table.concat(row.faults, '; ')
  for _, pattern in ipairs { ... } do assert(said:find(pattern), mistake .. ': ' .. said) end
end

local report, row = check(nil, { steps = 3 })
assert(report.ok and row.ok and #report.rows == 1 and #report.refused == 0, tostring(report))
assert(row.loss_rel <= 1e-6 and row.norm_rel <= 1e-6 and row.grad_rel <= 1e-6 and row.bytes > 0 and row.peak > 0 and row.flips == 0)

finds('scale', 'the loss is off', 'the norm is off', 'the gradient of')
finds('rows', 'the loss is off')
finds('unsummed', 'the gradient of first%.bias')
assert(select(2, check 'unsummed').uneven == 'first.bias')
finds('missing', 'extra%.weight: 4 of 8 elements are held')
finds('route', '6 routes differ, by scores up to')

report, row = check 'tie' -- a flip at a tie is told, and the rest compared with the reference's routes
assert(report.ok and row.flips == 6 and row.gap == 0 and row.grad_rel <= 1e-6, tostring(report))

report = check 'refused'
assert(not report.ok and #report.rows == 0 and report.refused[1].why:find 'no such layout')
report = check(nil, { layouts = { { tp = 1, ep = 2, etp = 1 }, { tp = 1, ep = 2, etp = 1, zero = { dense = 4 } } } })
assert(report.ok and report.refused[1].why:find 'zero.dense must be a whole number')
assert(not pcall(dist.check_layouts, { model = print, loss = print, batches = {} }))
dist.barrier()
if rank == 0 then print 'all well' end
