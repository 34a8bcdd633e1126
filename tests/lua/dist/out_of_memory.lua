-- Run by out_of_memory_spec.lua: a training step, in which each allocation fails in its turn, on one rank or another.
-- Every time all ranks hear of it, and go on together; the step after it gives what the first one gave.
--   out_of_memory.lua LAYOUT ...   a layout: 'ep=2 zero=3 once=yes'; with every=N, one of N allocations; with dies=N, the N-th
--   fails and nobody catches it
local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'
local dist, moe, nn, optim = lumoe.dist, lumoe.moe, lumoe.nn, lumoe.optim

local BATCH, TIME, DIM, VOCAB = 4, 3, 8, 11
local rank, size = dist.rank(), dist.world_size()
C.lm_shard_set_bucket(600) -- several buckets to a unit

local Model = nn.class 'Model'
function Model:init(mesh, exchange)
  self.embedding = nn.Embedding { VOCAB, DIM, mesh = mesh, split = mesh.tp > 1 and 'vocabulary' or nil }
  local experts = moe.Layer { dim = DIM, mesh = mesh, router = moe.routers.top_k { dim = DIM, top_k = 2 }, exchange = exchange,
    capacity = { factor = 1, select = 'random' }, experts = moe.FFN { experts = 3, hidden = 6 },
    balance = { moe.balance.load(0.01) } }
  self.layers = { nn.TransformerEncoderLayer { dim = DIM, heads = 2, dropout = 0, mesh = mesh, feed_forward = experts } }
end
function Model:loss(ids, tags)
  local x, aux = self.layers[1](self.embedding(ids), tags)
  local loss = x:reshape(-1, DIM):linear_cross_entropy(self.embedding.weight, ids:flatten(), { cut = self.embedding.cut })
  return loss:sum() / (BATCH * TIME) + aux
end

-- What a layout's step gives, as a function.
local function stepper(opts)
  lumoe.manual_seed(7)
  local zero = tonumber(opts.zero or 0)
  local mesh = dist.mesh { tp = tonumber(opts.tp or 1), ep = tonumber(opts.ep or 1), zero = { dense = zero, expert = zero } }
  local exchange = { once = opts.once == 'yes', way = opts.way, parts = tonumber(opts.parts), shadow = tonumber(opts.shadow) }
  local model = Model(mesh, exchange)
  model:initialize()
  if opts.zero then dist.shard(model, mesh) end
  local optimizer = optim.AdamW(model:named_parameters(), { lr = 0 })
  model:train()
  local first, count = dist.share(BATCH, mesh.data.rank, mesh.data.size)
  local all = lumoe.arange(BATCH * TIME):to 'i64':reshape(BATCH, TIME)
  local tokens = all:narrow(0, first, count)
  local ids = {}
  for t = 1, BATCH * TIME do ids[t] = t * 7 % VOCAB end
  ids = lumoe.tensor(ids, { dtype = 'i32' }):reshape(BATCH, TIME):narrow(0, first, count)
  return function()
    return lumoe.scope(function()
      optimizer:zero_grad()
      require('lumoe.random').step(1)
      local loss = model:loss(ids, { tokens = tokens })
      loss:backward { last = true }
      dist.reduce_gradients(model)
      local norm = dist.grad_norm(model)
      optimizer:step()
      return ('%.9g %.9g'):format(dist.reduce_number(loss:item(), 'sum', mesh.data), norm)
    end)
  end
end

-- Fails the n-th allocation of this rank in a step that the ranks do together; `after` it, all that follow.
local function with_fault(step, n, after)
  return dist.together(function()
    C.lm_test_fail_alloc(after and n or -n)
    local ok, result = pcall(step)
    C.lm_test_fail_alloc(0)
    if not ok then error(result, 0) end
    return result
  end)
end

-- Fails the n-th of one rank, of the other, .. : whether the step went through.
local function try(step, want, n, after)
  local mine = n % size == rank
  local ok, result = pcall(with_fault, step, mine and n or 0, after)
  if ok then assert(result == want, ('%s instead of %s, %d'):format(result, want, n))
  else assert(result:find('no memory', 1, true) and (mine or result:find('[on rank ', 1, true)), ('%d: %s'):format(n, result)) end
  return ok
end

local function memory()
  collectgarbage()
  collectgarbage()
  return C.lm_memory_live(-1)
end

for _, layout in ipairs(arg) do
  local opts = {}
  for key, value in layout:gmatch '(%S+)=(%S+)' do opts[key] = value end
  local step = stepper(opts)
  step()
  local want, n = step(), 1
  local before = memory()
  if opts.dies then -- one rank, alone and for good
    dist.barrier()
    C.lm_test_fail_alloc(rank == size - 1 and tonumber(opts.dies) or 0)
    step()
  end
  -- until there are no more; where it fails once, an operation may succeed when tried again
  local every = tonumber(opts.every or 1)
  while not try(step, want, n, true) do n = n + every end
  for once = 1, n, 5 * every do try(step, want, once, false) end
  assert(step() == want, 'after the last failure')
  assert(memory() == before, ('%d bytes live, not %d'):format(memory(), before))
  assert(n > 300, ('%s: no more than %d allocations'):format(layout, n))
end
if rank == 0 then print 'all well' end
