-- Run by dist_spec.lua on two ranks: lumoe.dist, checked where it runs.
local lumoe = require 'lumoe'
local dist, nn = lumoe.dist, lumoe.nn
local rank = dist.rank()
assert(dist.world_size() == 2 and dist.local_size() == 2 and dist.launched())

local x = lumoe.full({ 2, 3 }, rank + 1)
assert(dist.all_reduce(x)[{ 1, 2 }]:item() == 3)
assert(dist.all_reduce(lumoe.full({ 1 }, rank), 'max'):item() == 1)
assert(dist.broadcast(lumoe.full({ 2 }, rank, { dtype = 'i64' }), 1)[0]:item() == 1)
assert(dist.reduce_number(rank + 0.5) == 2)
assert(dist.reduce_number(rank, 'min') == 0)
local first, count = dist.share(5)
assert(first == (rank == 0 and 0 or 2) and count == (rank == 0 and 2 or 3))

local ok, message = pcall(dist.agree, rank == 1 and 'rank 1 cannot' or nil)
assert(not ok and message:find 'rank 1 cannot')
dist.agree(nil)
local did = 0
dist.once(function() did = did + 1 end)
assert(did == (rank == 0 and 1 or 0))
ok, message = pcall(dist.once, function() lumoe.refuse('no %s', 'way') end)
assert(not ok and message == (rank == 0 and 'no way' or 'no way [on rank 0]')) -- one sentence, no place
ok, message = pcall(dist.once, function() error 'a fault' end)
assert(not ok and message:find 'a fault\nstack traceback')
assert(not pcall(dist.all_reduce, x:t())) -- not contiguous: an error before anyone waits

local texts = dist.gather_texts(rank == 0 and '' or 'of\0one')
assert(#texts == 2 and texts[1] == '' and texts[2] == 'of\0one')

local mesh = dist.mesh { ep = 2 }
assert(mesh.dp == 2 and mesh.edp == 1 and mesh.expert.rank == rank and mesh.replicas.size == 1)
ok, message = pcall(dist.mesh, { ep = 3 })
assert(not ok and message:find 'ep = 3 does not divide the 2 ranks of the job')

-- Gradients: one rank gives none for the bias; the sum is over both, the norm counts each once.
local linear = nn.Linear { 2, 1 }
linear.weight.grad = lumoe.full({ 1, 2 }, rank + 1)
if rank == 0 then linear.bias.grad = lumoe.full({ 1 }, 4) end
dist.reduce_gradients(linear)
assert(linear.weight.grad[{ 0, 0 }]:item() == 3 and linear.bias.grad:item() == 4)
local norm = math.sqrt(3 * 3 * 2 + 16)
assert(math.abs(dist.clip_grad_norm(linear, 1) - norm) < 1e-6)
assert(math.abs(dist.grad_norm(linear) - 1) < 1e-6)
dist.barrier()
if rank == 0 then print 'all well' end
