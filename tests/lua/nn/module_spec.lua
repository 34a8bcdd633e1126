local lumoe = require 'lumoe'
local naive = require 'tests.lua.nn.naive'
local random = require 'lumoe.random'
local nn, moe = lumoe.nn, lumoe.moe
local numbers, near = naive.numbers, naive.near

local Pair = nn.class 'Pair'
function Pair:init(opts)
  self.second = nn.Linear { opts.dim, opts.dim }
  self.first = nn.Linear { opts.dim, opts.dim, bias = false }
  self.list = {}
  for i = 1, opts.count or 0 do self.list[i] = nn.LayerNorm { opts.dim } end
  self.table = { norm = nn.RMSNorm { opts.dim } }
  self._hidden = nn.Linear { 2, 2 }
end
function Pair:forward(x) return self.second(self.first(x)) end

local function names(m)
  local list = {}
  for i, p in ipairs(m:named_parameters()) do list[i] = p.name end
  return list
end

describe('nn.Module', function()
  before_each(function() lumoe.manual_seed(1) end)

  it('names parameters by their path, sorted; fields with _ are its own', function()
    assert.same({ 'first.weight', 'list.1.bias', 'list.1.weight', 'list.2.bias', 'list.2.weight', 'second.bias',
      'second.weight', 'table.norm.weight' }, names(Pair { dim = 3, count = 2 }))
    local sorted = names(Pair { dim = 2, count = 11 })
    local copy = { unpack(sorted) }
    table.sort(copy)
    assert.same(copy, sorted)
  end)

  it('counts a shared tensor or module once', function()
    local pair = Pair { dim = 3 }
    pair.second = pair.first
    assert.same({ 'first.weight', 'table.norm.weight' }, names(pair))
    assert.equal(12, pair:numel())
    local other = Pair { dim = 3 }
    other.second.weight = other.first.weight
    assert.same({ 'first.weight', 'second.bias', 'table.norm.weight' }, names(other))
    other(lumoe.ones(1, 3)):sum():backward()
    assert.is_true(other.first.weight.grad ~= nil)
  end)

  it('binds symbols, and says which are not bound', function()
    local gate = nn.Linear { 4, moe.EXPERTS, bias = true }
    local holder = Pair { dim = 4 }
    holder.gate = gate
    local ok, message = pcall(holder.named_parameters, holder)
    assert.is_false(ok)
    assert.matches("parameter 'gate%.[%a]+' has a size that is not bound yet", message)
    holder:bind(moe.EXPERTS, 6)
    assert.same({ 6, 4 }, gate.weight:shape_table())
    assert.same({ 6 }, gate.bias:shape_table())
    assert.same({ 3, 6 }, gate(lumoe.ones(3, 4)):shape_table())
    local another = nn.symbol 'test.another'
    local both = nn.Linear { 4, another }
    both:bind(moe.EXPERTS, 3)
    assert.is_nil(both.weight)
    both:bind(another, 2)
    assert.same({ 2, 4 }, both.weight:shape_table())
  end)

  it('in bf16 keeps vectors and weights of symbolic sizes in f32', function()
    local pair = Pair { dim = 4, count = 1 }
    pair.gate = nn.Linear { 4, moe.EXPERTS }
    pair.fixed = nn.Linear { 4, 4, f32 = true }
    pair:bind(moe.EXPERTS, 2)
    local id, before = pair.first.weight:id(), numbers(pair.first.weight)
    assert.equal(pair, pair:to 'bf16')
    local dtypes = {}
    for _, p in ipairs(pair:named_parameters()) do dtypes[p.name] = p.tensor.dtype end
    assert.same({ ['first.weight'] = 'bf16', ['second.weight'] = 'bf16', ['second.bias'] = 'f32', ['list.1.weight'] = 'f32',
      ['list.1.bias'] = 'f32', ['table.norm.weight'] = 'f32', ['gate.weight'] = 'f32', ['gate.bias'] = 'f32',
      ['fixed.weight'] = 'f32', ['fixed.bias'] = 'f32' }, dtypes)
    assert.equal(id, pair.first.weight:id()) -- handles are stable
    near(before, numbers(pair.first.weight:float()), 2 ^ -8)
    local y = pair(lumoe.ones(2, 4):to 'bf16')
    assert.equal('bf16', y.dtype)
    y:float():sum():backward()
    assert.is_true(pair.first.weight.grad ~= nil)
    pair:to 'f32'
    assert.equal('f32', pair.first.weight.dtype)
  end)

  it('starts the same weights in bf16 as in f32', function()
    local wide, narrow = Pair { dim = 8 }, Pair { dim = 8 }
    wide:initialize()
    narrow:to('bf16'):initialize()
    near(numbers(wide.first.weight:to 'bf16'), numbers(narrow.first.weight), 0)
  end)

  it('can be bf16 from the start: the same model, never in the memory of f32', function()
    local function made(f)
      local model = nn.as('bf16', f)
      model:initialize()
      return model
    end
    local late = Pair { dim = 8 }
    late:to('bf16'):initialize()
    local early = made(function() return Pair { dim = 8 } end)
    for i, p in ipairs(late:named_parameters()) do
      local q = early:named_parameters()[i]
      assert.equal(p.tensor.dtype, q.tensor.dtype, p.name)
      near(numbers(p.tensor), numbers(q.tensor), 0)
    end
    assert.equal('f32', nn.Linear({ 4, 4 }).weight.dtype)
    assert.is_false(pcall(nn.as, 'bf16', error, 'wrong'))
    assert.equal('f32', nn.Linear({ 4, 4 }).weight.dtype)

    collectgarbage()
    collectgarbage()
    lumoe.reset_peak_memory()
    local before = lumoe.memory().live.total
    local big = made(function() return Pair { dim = 512 } end) -- two matrices and more
    local peak = lumoe.memory().peak.total - before
    assert.is_true(peak < 2 * big:numel() + 4 * 512 * 512 + 2 ^ 16, tostring(peak))
  end)

  it('can be made without bytes, which come when it is sharded: the same model', function()
    local plain = Pair { dim = 512 }
    plain:to('bf16'):initialize()
    collectgarbage()
    collectgarbage()
    lumoe.reset_peak_memory()
    local before = lumoe.memory().live.total
    local model = nn.as('bf16', nn.later, function() return Pair { dim = 512 } end)
    model:initialize()
    assert.is_true(lumoe.memory().live.total - before < 1000)
    assert.error_matches(function() lumoe.scope(function() model(lumoe.ones(1, 512)) end) end, "the tensor's bytes are away")
    lumoe.dist.shard(model, lumoe.dist.mesh { offload = 'parameters' })
    local peak = lumoe.memory().peak.total - before -- one matrix, and its numbers as they were drawn
    assert.is_true(peak < (2 + 4) * 512 * 512 + 2 ^ 14, tostring(peak))
    assert.is_true(lumoe.memory().live.total - before < 1000)
    lumoe.dist.gathered(model, function()
      for i, p in ipairs(plain:named_parameters()) do
        near(numbers(p.tensor), numbers(model:named_parameters()[i].tensor), 0)
      end
    end)
  end)

  it('initializes by path, seed and element: not by order of construction, nor by draws before', function()
    local one = Pair { dim = 3 }
    one:initialize()
    lumoe.randn(100)
    random.step(9)
    local other = nn.class 'Reversed'()
    other.table = { norm = nn.RMSNorm { 3 } }
    other.first = nn.Linear { 3, 3, bias = false }
    other.second = nn.Linear { 3, 3 }
    other:initialize()
    for name, t in pairs(one:state()) do near(numbers(t), numbers(other:state()[name]), 0) end
    assert.is_false(pcall(near, numbers(one.first.weight), numbers(one.second.weight), 1e-3))
    lumoe.manual_seed(2)
    other:initialize()
    assert.is_false(pcall(near, numbers(one.first.weight), numbers(other.first.weight), 1e-3))
    assert.equal('second', other.second:path())
  end)

  it('draws a part of a parameter as that part of the whole', function()
    local Part = nn.class 'Part'
    function Part:init(at) nn.parameter(self, 'weight', { 6, 5, 4 }, { init = 'normal', std = 1, at = at }) end
    local whole = Part()
    whole:initialize()
    local w = whole.weight:detach()
    local function rows(dim, ranges)
      local parts = {}
      for i, range in ipairs(ranges) do parts[i] = w:narrow(dim, range[1], range[2]) end
      return lumoe.cat(parts, dim)
    end
    for _, case in ipairs { { 0, { { 4, 2 } } }, { 0, { { 5, 1 }, { 1, 1 } } }, { 1, { { 2, 3 } } }, { 1, { { 1, 1 }, { 3, 2 } } },
      { 2, { { 0, 1 } } }, { 2, { { 1, 2 }, { 3, 1 } } }, { 0, { { 0, 6 } } } } do
      local part = Part { [case[1]] = case[2] }
      part:initialize()
      near(numbers(rows(case[1], case[2])), numbers(part.weight), 0)
    end
    local both = Part { [0] = { { 5, 1 }, { 1, 2 } }, [2] = { { 2, 2 } } }
    both:initialize()
    near(numbers(rows(0, { { 5, 1 }, { 1, 2 } }):narrow(2, 2, 2)), numbers(both.weight), 0)
    local none = Part { [1] = {} }
    none:initialize()
    assert.same({ 6, 0, 4 }, none.weight:shape_table())
    assert.error_matches(function() Part { [1] = { { 3, 3 } } } end, 'range 3 to 5 of dim 1, which has a size of 5')
    assert.error_matches(function() Part { [3] = { { 0, 1 } } } end, 'dim 3 is cut, but there is no such dim')
  end)

  it('follows train and eval everywhere', function()
    local pair = Pair { dim = 2, count = 1 }
    assert.is_true(pair.list[1].training)
    pair:eval()
    assert.is_false(pair.training)
    assert.is_false(pair.list[1].training)
    assert.is_false(pair.table.norm.training)
    pair:train()
    assert.is_true(pair.table.norm.training)
  end)

  it('gives its state and takes it back', function()
    local from, to = Pair { dim = 3, count = 1 }, Pair { dim = 3, count = 1 }
    from:apply(function(m, path) if path == 'list.1' then lumoe.no_grad(function() m.bias:fill_(4) end) end end)
    assert.equal(to, to:load_state(from:state()))
    for name, t in pairs(from:state()) do near(numbers(t), numbers(to:state()[name]), 0) end
    assert.is_false(from.first.weight:shares_storage(to.first.weight))
    assert.is_true(to.first.weight.requires_grad)
  end)

  it('names everything that is wrong with a state', function()
    local pair = Pair { dim = 3 }
    local state = pair:state()
    state['first.weight'], state['second.bias'], state['third.weight'] = nil, lumoe.zeros(4), lumoe.zeros(1)
    local before = numbers(pair.second.weight)
    state['second.weight'] = lumoe.zeros(3, 3)
    local ok, message = pcall(pair.load_state, pair, state)
    assert.is_false(ok)
    assert.truthy(message:find('load_state: first.weight is missing; second.bias is [4] f32, wants [3] f32; '
      .. 'third.weight is not in the model', 1, true), message)
    near(before, numbers(pair.second.weight), 0) -- nothing was copied
  end)

  it('drops gradients', function()
    local pair = Pair { dim = 3 }
    pair(lumoe.ones(2, 3)):sum():backward()
    pair:zero_grad()
    for _, p in ipairs(pair:parameters()) do assert.is_true(p.grad == nil) end
  end)

  it('survives scopes, and books its parameters', function()
    local before = lumoe.memory().live.parameters
    local pair = lumoe.scope(function()
      local made = Pair { dim = 16 }
      made(lumoe.ones(1, 16))
      return made
    end)
    assert.equal(2 * 16 * 16, pair.first.weight:numel() + pair.second.weight:numel())
    assert.is_true(lumoe.memory().live.parameters - before >= 4 * (2 * 256 + 32))
    assert.is_true(pair.first.weight:detach():abs():max():item() > 0)
  end)

  it('describes itself', function()
    local text = tostring(Pair { dim = 3 })
    assert.matches('^Pair\n', text)
    assert.matches('first: Linear %(weight %[3, 3%] f32%)', text)
    assert.matches('\n    norm: RMSNorm', text)
  end)

  it('refuses inits that it does not know', function()
    local Odd = nn.class 'Odd'
    function Odd:init(opts) nn.parameter(self, 'weight', { 2 }, opts) end
    for want, opts in pairs { ["no init 'twos'"] = { init = 'twos' }, ['normal wants std'] = { init = 'normal' },
      ['uniform wants bound'] = { init = 'uniform' }, ["unknown option 'sd'"] = { sd = 1 } } do
      local ok, message = pcall(Odd, opts)
      assert.is_false(ok)
      assert.truthy(message:find(want, 1, true), message)
    end
  end)
end)
