--- Which parameters form a unit, and how a sharded model is used. One process; parameters that are not always in memory
-- are offloaded ones, which leave it as those of ZeRO's stage 3 do.
local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'
local dist, moe, nn, optim = lumoe.dist, lumoe.moe, lumoe.nn, lumoe.optim

local DIM = 8

local Model = nn.class 'Model'
function Model:init(mesh)
  self.embedding = nn.Embedding { 11, DIM }
  self.layers = {}
  for i = 1, 2 do
    self.layers[i] = nn.TransformerEncoderLayer { dim = DIM, heads = 2, hidden = 12, feed_forward = i == 2 and moe.Layer {
      dim = DIM, mesh = mesh, experts = moe.FFN { experts = 3, hidden = 5 }, router = moe.routers.top_k { dim = DIM, top_k = 1 } } or nil }
  end
  self.stack = { down = { nn.Linear { DIM, DIM } } } -- not every part of a path is a module
  self.head = nn.Linear { DIM, 11, bias = false }
  self.head.weight = self.embedding.weight -- one parameter in two modules
  for i = 1, 2 do self.layers[i].tied = nn.Linear { DIM, DIM } end
  self.layers[2].tied.weight = self.layers[1].tied.weight -- and in two layers
end
function Model:forward(ids)
  local x = self.embedding(ids)
  for _, layer in ipairs(self.layers) do x = layer(x) end
  return self.head(self.stack.down[1](x))
end
function Model:logits(x) return x:linear(self.embedding.weight) end
function Model:name() return 'a model of ' .. #self.layers end
function Model:fails() error('a slip of ' .. self.embedding.weight:size(0), 0) end

local function away() return dist.shard(Model(dist.mesh { offload = 'parameters' })) end
local function ids() return lumoe.tensor({ { 1, 2, 3 } }, { dtype = 'i32' }) end

local function names(model)
  local list = {}
  for _, unit in ipairs(model._sharded.units) do
    local of = {}
    for i, p in ipairs(unit.parameters) do of[i] = p.name end
    list[unit.path] = table.concat(of, ' ')
  end
  return list
end

local function fails(pattern, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  assert.matches(pattern, message)
end

describe('dist.shard', function()
  it('makes units of layers, of experts, and of what is left', function()
    local list = names(dist.shard(Model()))
    local function has(unit, name) assert.is_truthy((' ' .. list[unit] .. ' '):find(' ' .. name .. ' ', 1, true), name) end
    has('', 'embedding.weight') -- once, as the model's own
    assert.is_nil(list['']:find('head', 1, true))
    has('layers.1', 'layers.1.feed_forward.up.weight')
    has('layers.2', 'layers.2.feed_forward.router.gate.weight')
    has('layers.2.feed_forward.experts', 'layers.2.feed_forward.experts.up')
    has('stack.down.1', 'stack.down.1.weight')
    has('', 'layers.1.tied.weight') -- the innermost unit around both layers
    has('layers.2', 'layers.2.tied.bias')
    assert.is_nil(list['layers.1']:find('tied.weight', 1, true))
  end)

  it('changes nothing of what the model computes, and can be undone', function()
    local model, plain = Model(), Model()
    model:initialize()
    plain:load_state(model:state())
    local want = plain(ids())
    dist.shard(model)
    fails('dist.shard: the model is sharded already', dist.shard, model)
    assert.same(want:totable(), model(ids()):totable())
    dist.unshard(model)
    for _, entry in ipairs(model:named_modules()) do
      assert.is_nil(rawget(entry[2], 'forward'))
      assert.is_nil(entry[2]._unwrapped)
    end
    assert.equal(-1, C.lm_shard_stage(require('lumoe.handle').pointer(model.head.weight)))
    assert.same(want:totable(), model(ids()):totable())
    dist.shard(model) -- and again
    assert.same(want:totable(), model(ids()):totable())
  end)

  it('makes parameters whole for the model, its layers, its methods and modules alone', function()
    local model = away()
    fails("parameter 'embedding.weight' is not gathered: .* its unit 'model' runs; see dist.gathered",
      function() return model.embedding.weight:sum() end)
    local y = model(ids())
    assert.same({ 1, 3, 11 }, y:shape_table())
    local x = lumoe.ones(1, 3, DIM)
    assert.same({ 1, 3, 11 }, model:logits(x):shape_table()) -- a method that uses a parameter itself
    assert.same({ 1, 3, 11 }, model.head(x):shape_table())   -- a module of the model's unit
    assert.same({ 1, 3, DIM }, model.layers[1].self_attention(x):shape_table()) -- one inside of a layer
    fails('not gathered', function() return model.layers[1].self_attention.output.weight:sum() end)
    collectgarbage() -- what earlier tests left goes now, not between the two counts
    collectgarbage()
    local before = C.lm_memory_live(C.LM_MEM_PARAMETERS)
    assert.equal('a model of 2', model:name()) -- gathers nothing
    assert.equal(before, C.lm_memory_live(C.LM_MEM_PARAMETERS))
  end)

  it('leaves regions when a method raises', function()
    local model = away()
    fails('^a slip of 11$', model.fails, model)
    fails('not gathered', function() return model.embedding.weight:sum() end)
    fails('embedding', function() model(lumoe.tensor({ { 99 } }, { dtype = 'i32' })) end)
    fails('not gathered', function() return model.embedding.weight:sum() end)
    assert.same({ 1, 3, 11 }, model(ids()):shape_table())
  end)

  it('has all whole in dist.gathered, where they may be written, also through no_grad and evaluation', function()
    local model, other = away(), Model()
    other:initialize()
    local want = other:eval()(ids()):totable()
    dist.gathered(model, function() model:load_state(other:state()) end)
    fails('not gathered', function() return model.head.weight:sum() end)
    assert.same(want, lumoe.no_grad(function() return model:eval()(ids()) end):totable())
    assert.same({ 1, 2 }, { dist.gathered(model, function(...) return ... end, 1, 2) })
    fails('^inside$', dist.gathered, model, function() error('inside', 0) end)
    fails('not gathered', function() return model.head.weight:sum() end)
  end)

  it('knows when a parameter came later', function()
    local model = dist.shard(Model())
    model.extra = nn.Linear { DIM, DIM }
    fails("parameter 'extra.bias' was made after dist.shard", dist.reduce_gradients, model)
    dist.shard(dist.unshard(model))
    dist.reduce_gradients(model)
  end)

  it('is made before the optimizer', function()
    local mesh = dist.mesh { offload = 'parameters' }
    local model = dist.shard(Model(mesh))
    local optimizer = optim.AdamW(model:named_parameters(), {})
    model(ids()):square():sum():backward { last = true }
    dist.reduce_gradients(model)
    assert.is_true(dist.grad_norm(model) > 0)
    optimizer:step {}
    optimizer:zero_grad()
    assert.equal(0, dist.grad_norm(model))
  end)
end)
