-- Run by tensor_parallel_spec.lua under mpirun: a translator cut over every tp that the ranks allow, beside the
-- same model whole on each rank, which sees the whole batch and talks to nobody.
package.path = './?.lua;' .. package.path
local lumoe = require 'lumoe'
local part_of = require 'tests.lua.dist.part'
local dist, nn = lumoe.dist, lumoe.nn

local dtype = arg[1]
local BATCH, TIME, DIM, HEADS, VOCAB, CLASSES = 5, 7, 24, 6, 29, 13
local exact, close = 1e-6, 1e-5
if dtype == 'bf16' then exact, close = 2 ^ -8, 2 ^ -5 end -- partial sums are rounded, too

local Model = nn.class 'Model'
function Model:init(mesh, norm, activation)
  local function layer(class)
    return class { dim = DIM, heads = HEADS, hidden = 31, activation = activation, norm = norm, rope = true, dropout = 0.1,
      mesh = mesh }
  end
  self.embedding = nn.Embedding { VOCAB, DIM, std = DIM ^ -0.5, mesh = mesh, split = 'vocabulary' }
  self.encoder, self.decoder = layer(nn.TransformerEncoderLayer), layer(nn.TransformerDecoderLayer)
  self.norm = nn.LayerNorm { DIM } -- says no mesh: that of the model
  self.head = nn.Linear { DIM, CLASSES, mesh = mesh, split = 'columns' }
end
function Model:decode(ids, tags, memory, cache)
  return self.norm((self.decoder(self.embedding(ids), tags, memory, nil, cache)))
end
function Model:forward(ids, tags, targets, classes)
  local x = self:decode(ids, tags, self.encoder(self.embedding(ids), tags))
  local options = { ignore_index = 3, label_smoothing = 0.1, z_loss = 1e-2, reduction = 'sum', cut = self.head.cut }
  return self.head(x):cross_entropy(classes, options)
    + x:linear_cross_entropy(self.embedding.weight, targets,
      { ignore_index = 3, label_smoothing = 0.2, z_loss = 1e-2, cut = self.embedding.cut })
end

local function model_of(...)
  local model = Model(...)
  model:initialize()
  return dtype == 'bf16' and model:to 'bf16' or model
end

lumoe.manual_seed(5)
local function whole_numbers(n) return (lumoe.rand(BATCH, TIME) * n):to 'i32' end
local ids, targets, classes = whole_numbers(VOCAB), whole_numbers(VOCAB), whole_numbers(CLASSES)
local tokens = lumoe.arange(BATCH * TIME):to('i64'):reshape(BATCH, TIME)

-- The loss of some sequences, by the number of all targets.
local function loss_of(model, first, count)
  local function some(t) return t:narrow(0, first, count) end
  require('lumoe.random').step(1)
  return model(some(ids), { tokens = some(tokens) }, some(targets), some(classes)) / (BATCH * TIME)
end

local function near(a, b, tolerance, what)
  assert(math.abs(a - b) <= tolerance * math.abs(b), ('%s: %.9g, not %.9g'):format(what, a, b))
end

local function length(t) return math.sqrt(t:float():square():sum():item()) end

local function check(tp, norm, activation)
  local mesh = dist.mesh { tp = tp }
  local whole, cut = model_of(nil, norm, activation), model_of(mesh, norm, activation)
  local name = ('%s, %s'):format(tostring(mesh), activation)

  local loss = loss_of(whole, 0, BATCH)
  loss:backward()
  local squares, want = 0, {}
  for _, p in ipairs(whole:named_parameters()) do
    want[p.name] = { grad = p.tensor.grad, value = p.tensor }
    squares = squares + length(p.tensor.grad) ^ 2
  end

  local first, count = dist.share(BATCH, mesh.data.rank, mesh.data.size)
  local own = loss_of(cut, first, count)
  own:backward()
  dist.reduce_gradients(cut)
  near(dist.reduce_number(own:item(), 'sum', mesh.data), loss:item(), exact, name .. ': loss')
  near(dist.grad_norm(cut), math.sqrt(squares), exact, name .. ': norm')

  local split = 0
  for _, p in ipairs(cut:named_parameters()) do
    local w, g = want[p.name], p.tensor.grad
    assert((part_of(w.value:detach(), p):float() - p.tensor:detach():float()):abs():sum():item() == 0, p.name .. ' starts apart')
    local apart = length(part_of(w.grad, p) - g)
    assert(apart <= close * math.max(length(w.grad), 1e-3 * math.sqrt(squares)),
      ('%s: gradient of %s is off by %.3g of %.3g'):format(name, p.name, apart, length(w.grad)))
    if p.spec.at then split = split + 1
    else -- replicated: the same bits on every rank of the tensor group
      local other = dist.broadcast(g:clone(), 0, mesh.tensor)
      assert((other - g):abs():sum():item() == 0, p.name .. ' differs over tp')
    end
  end
  assert((split > 0) == (tp > 1))

  -- Generation: position by position with a cache gives what one pass gives, and logits are whole.
  whole:eval()
  cut:eval()
  lumoe.no_grad(function()
    local memory = whole.encoder(whole.embedding(ids), {})
    local x = cut:decode(ids, {}, memory)
    local logits, other = whole.embedding:logits(whole:decode(ids, {}, memory)), cut.embedding:logits(x)
    assert(length(other - logits) <= close * length(logits), name .. ': logits')
    local cache = {}
    for t = 0, TIME - 1 do
      local y = cut:decode(ids:narrow(1, t, 1), {}, memory, cache)
      local all = x:narrow(1, t, 1)
      assert(length(y - all) <= 2 * close * length(all), name .. ': cache')
    end
  end)
end

local function fails(pattern, f, ...)
  local ok, message = pcall(f, ...)
  assert(not ok and message:find(pattern), message)
end

local size = dist.world_size()
for tp = 1, size do
  if size % tp == 0 and HEADS % tp == 0 then
    check(tp, 'layer', 'gelu')
    check(tp, 'rms', 'swiglu')
  end
end
if size > 1 then
  local mesh = dist.mesh { tp = size }
  fails('nn.MultiheadAttention: 1 heads do not divide among tp = ' .. size, nn.MultiheadAttention, { 24, 1, mesh = mesh })
  fails('nn.Embedding: count 1 does not spread over tp = ' .. size, nn.Embedding, { 1, 8, mesh = mesh, split = 'vocabulary' })
  -- A bad id is an error of all ranks, whoever has the rows around it.
  local table_of, head = nn.Embedding { 12, 8, mesh = mesh, split = 'vocabulary' }, nn.Linear { 8, 12, mesh = mesh, split = 'columns' }
  local bad, x = lumoe.tensor({ 3, 12 }, { dtype = 'i32' }), lumoe.ones(2, 8)
  fails('embedding: id 12 at position 1 is not in 0 to 11', table_of, bad)
  fails('cross_entropy: id 12 at position 1 is not in 0 to 11', function() head(x):cross_entropy(bad, { cut = head.cut }) end)
  fails('linear_cross_entropy: id 12 at position 1 is not in 0 to 11', function()
    x:linear_cross_entropy(table_of.weight, bad, { cut = table_of.cut })
  end)
  fails('cross_entropy: 12 classes from %d+ on, of 12 in all', function()
    lumoe.ones(2, 12):cross_entropy(bad, { cut = { group = mesh.tensor, first = 1, whole = 12 } })
  end)
  fails("nn.Linear: split must be 'columns' or 'rows', not both", nn.Linear, { 1, 8, mesh = mesh, split = 'both' })
  fails("optim.Adafactor: 'bias' is cut along dim 0 over ranks, but its means are over all of it", function()
    lumoe.optim.Adafactor(nn.Linear({ 4, 2 * size, mesh = mesh, split = 'columns' }):named_parameters())
  end)
  local one, two = nn.Linear { 4, 4, mesh = mesh }, nn.Linear { 4, 4, mesh = dist.mesh {} }
  local Pair = nn.class 'Pair'
  function Pair:init() self.a, self.b = one, two end
  fails("'a.bias' and 'b.bias' are of one model, but lie on meshes that differ: dp 1 × tp " .. size, function()
    dist.reduce_gradients(Pair())
  end)
end
dist.barrier()
if dist.rank() == 0 then print 'all well' end
