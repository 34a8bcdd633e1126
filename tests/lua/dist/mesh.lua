-- Run by mesh_spec.lua on six ranks: the groups of every layout, and who sums and counts what.
local lumoe = require 'lumoe'
local dist, nn = lumoe.dist, lumoe.nn
local placement = dist.placement
local rank, size = dist.rank(), dist.world_size()
assert(size == 6)

local function same(a, b) assert(table.concat(a, ' ') == table.concat(b, ' '), table.concat(a, ' ')) end

-- tp 2, and experts over 3 places: by hand.
local mesh = dist.mesh { tp = 2, ep = 3 }
assert(mesh.dp == 3 and mesh.edp == 2 and mesh.etp == 1)
same(mesh.tensor.ranks, { rank - rank % 2, rank - rank % 2 + 1 })
same(mesh.data.ranks, rank % 2 == 0 and { 0, 2, 4 } or { 1, 3, 5 })
same(mesh.expert.ranks, rank < 3 and { 0, 1, 2 } or { 3, 4, 5 })
same(mesh.replicas.ranks, { rank % 3, rank % 3 + 3 })
same(mesh.tokens.ranks, { 0, 1, 2, 3, 4, 5 })
assert(mesh == dist.mesh { ep = 3, tp = 2 } and mesh.data == dist.mesh({ tp = 2 }).data)

-- A place of two ranks: neighbours.
mesh = dist.mesh { ep = 3, etp = 2 }
same(mesh.expert.ranks, { 0, 1, 2, 3, 4, 5 })
same(mesh.replicas.ranks, { rank })
assert(not pcall(dist.mesh, { tp = 4 }))
assert(select(2, pcall(dist.mesh, { ep = 2, etp = 2 })):find 'ep · etp = 2 · 2 = 4 does not divide the 6 ranks of the job')

-- Every layout: a parameter of each kind, whose gradient is made of ones. However it is cut, reduce_gradients
-- gives the number of parts of the batch, and the norm counts each of its elements once.
local Model = nn.class 'Model'
function Model:init(m)
  local function cut(count, group) return { { dist.share(count, group.rank, group.size) } } end
  local place = math.floor(m.expert.rank / m.etp)
  local experts = { { dist.share(5, place, m.ep) } }
  local slice = { { dist.share(7, m.expert.rank % m.etp, m.etp) } }
  nn.parameter(self, 'whole', { 3 })
  nn.parameter(self, 'columns', { 5, 2 }, { mesh = m, at = m.tp > 1 and { [0] = cut(5, m.tensor) } or nil })
  nn.parameter(self, 'rows', { 2, 5 }, { mesh = m, at = m.tp > 1 and { [1] = cut(5, m.tensor) } or nil })
  nn.parameter(self, 'up', { 5, 7, 2 }, { mesh = m, group = 'expert', at = { [0] = experts, [1] = m.etp > 1 and slice or nil } })
  nn.parameter(self, 'bias', { 5, 2 }, { mesh = m, group = 'expert', at = { [0] = experts } })
end

for _, layout in ipairs { {}, { tp = 2 }, { tp = 3 }, { tp = 6 }, { ep = 2 }, { ep = 2, tp = 3 }, { ep = 6 }, { ep = 3, etp = 2 },
  { ep = 1, etp = 2, tp = 3 }, { etp = 6 }, { ep = 1, etp = 3 } } do
  mesh = dist.mesh(layout)
  local model = Model(mesh)
  local elements = 0
  for _, p in ipairs(model:named_parameters()) do
    p.tensor.grad = lumoe.full(p.tensor:shape_table(), 1)
    local n = 1
    for _, s in ipairs(p.spec.whole) do n = n * s end
    local parts = placement.replicas(p).size
    elements = elements + n * parts ^ 2
    assert(parts == (p.spec.group == 'expert' and mesh.edp or mesh.dp))
    assert(dist.reduce_number(placement.counts(p) and p.tensor:numel() or 0) == n, p.name .. ' of ' .. tostring(mesh))
  end
  dist.reduce_gradients(model)
  assert(math.abs(dist.grad_norm(model) - math.sqrt(elements)) < 1e-9, tostring(mesh))
end

-- A rank alone, and two worlds side by side.
mesh = dist.mesh { ranks = { rank } }
assert(mesh.dp == 1 and mesh.tokens.size == 1 and mesh.replicas.ranks[1] == rank)
assert(mesh == dist.mesh { ranks = { rank } } and mesh ~= dist.mesh {})
local half = rank < 3 and { 0, 1, 2 } or { 3, 5, 4 }
mesh = dist.mesh { ranks = half, ep = 3 }
same(mesh.tokens.ranks, half)
same(mesh.expert.ranks, half)
same(mesh.replicas.ranks, { rank })
local model = Model(mesh)
for _, p in ipairs(model:named_parameters()) do p.tensor.grad = lumoe.full(p.tensor:shape_table(), rank < 3 and 1 or 2) end
dist.reduce_gradients(model)
local norm = math.sqrt((3 + 10 + 10) * 3 ^ 2 + 70 + 10)
assert(math.abs(dist.grad_norm(model) - (rank < 3 and norm or 2 * norm)) < 1e-6)
assert(dist.mesh { ranks = { 0, 1, 2, 3, 4, 5 } } == dist.mesh {})
assert(select(2, pcall(dist.mesh, { ranks = { (rank + 1) % 6 } })):find(('rank %d makes a mesh of ranks %d'):format(rank, (rank + 1) % 6)))

dist.barrier()
if rank == 0 then print 'all well' end
