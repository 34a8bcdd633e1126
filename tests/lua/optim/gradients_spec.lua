--- Gradients in bf16 (`grad_dtype`): those of experts' networks, rounded once, where nothing is added to them.
local lumoe = require 'lumoe'
local moe, optim = lumoe.moe, lumoe.optim

local WEIGHTS = { 'experts.up', 'experts.down' }

-- A layer, its parameters by name, and what a backward of it needs.
local function new(dtype, experts)
  lumoe.manual_seed(9)
  local layer = moe.Layer { dim = 48, router = moe.routers.top_k { dim = 48, top_k = 2 },
    experts = moe.FFN { experts = experts or 4, hidden = 40, activation = 'swiglu' } }
  layer:initialize()
  if dtype == 'bf16' then layer:to 'bf16' end
  local by_name = {}
  for _, p in ipairs(layer:named_parameters()) do by_name[p.name] = p.tensor end
  return layer, by_name
end

local function backward(layer, seed)
  lumoe.manual_seed(seed)
  local x, g = lumoe.randn(60, 48), lumoe.randn(60, 48)
  local dtype = layer:named_parameters()[1].tensor.dtype
  layer(x:to(dtype)):backward { grad = g:to(dtype) }
end

-- Gradients of the experts' weights after backwards with these seeds.
local function gradients(dtype, grad_dtype, seeds)
  local layer, by_name = new(dtype)
  for _, p in pairs(by_name) do p.grad_dtype = grad_dtype end
  for _, seed in ipairs(seeds) do backward(layer, seed) end
  local found = {}
  for _, name in ipairs(WEIGHTS) do found[name] = by_name[name].grad end
  return found, by_name
end

local function same(want, got)
  assert.equal(want.dtype, got.dtype)
  assert.equal(0, (want:float() - got:float()):abs():max():item())
end

describe('gradients in bf16', function()
  for _, dtype in ipairs { 'f32', 'bf16' } do
    it('are those in f32, rounded once: parameters in ' .. dtype, function()
      local want, all = gradients(dtype, 'f32', { 1 })
      local got, narrow = gradients(dtype, 'bf16', { 1 })
      for _, name in ipairs(WEIGHTS) do same(want[name]:to 'bf16', got[name]) end
      for name, p in pairs(all) do -- the rest of the layer's stay f32
        if not got[name] then same(p.grad, narrow[name].grad) end
      end
    end)

    it('become f32 when more is added: parameters in ' .. dtype, function()
      local first, second = gradients(dtype, 'bf16', { 1 }), gradients(dtype, 'f32', { 2 })
      local got = gradients(dtype, 'bf16', { 1, 2 })
      for _, name in ipairs(WEIGHTS) do same(first[name]:float() + second[name], got[name]) end
    end)
  end

  it('become f32 when a layer is used twice in a step', function()
    local layer, by_name = new 'bf16'
    for _, p in pairs(by_name) do p.grad_dtype = 'bf16' end
    local h = layer(lumoe.randn(30, 48):to 'bf16')
    local y = layer(h)
    y:float():sum():backward()
    for _, name in ipairs(WEIGHTS) do assert.equal('f32', by_name[name].grad.dtype) end
  end)

  it('take half the bytes', function()
    local function bytes(grad_dtype)
      collectgarbage()
      collectgarbage()
      local before = lumoe.memory().live.gradients
      local kept = { gradients('bf16', grad_dtype, { 1 }) }
      return (lumoe.memory().live.gradients) - before, kept
    end
    local f32, a = bytes 'f32'
    local bf16, b = bytes 'bf16'
    assert.is_true(a ~= b)
    assert.equal((2 * 40 * 48 + 40 * 48) * 4 * 2, f32 - bf16)
  end)

  for _, kind in ipairs { 'AdamW', 'SGD' } do
    it('are what an optimizer is given: ' .. kind, function()
      local layer, by_name = new 'bf16'
      local opt = optim[kind](layer:named_parameters(), { lr = 0.1, gradients = 'bf16', masters = false })
      backward(layer, 3)
      local up = by_name['experts.up']
      assert.equal('bf16', up.grad.dtype)
      local other, others = new 'bf16'
      local plain = optim[kind](other:named_parameters(), { lr = 0.1, masters = false })
      backward(other, 3)
      for name, p in pairs(others) do p.grad = by_name[name].grad:float() end -- the same, in f32
      opt:step()
      plain:step()
      same(others['experts.up'], up)
    end)
  end

  it('are all rounded, in experts without tokens zero', function()
    local layer, by_name = new('bf16', 200)
    for _, p in pairs(by_name) do p.grad_dtype = 'bf16' end
    backward(layer, 4)
    local got = by_name['experts.down'].grad
    same(got:float():to 'bf16', got)
    local routed = layer.last_plan:routed()
    for e, n in ipairs(routed) do
      if n == 0 then assert.equal(0, got:select(0, e - 1):float():abs():max():item()) end
    end
  end)

  it('are f32 or bf16', function()
    local x = lumoe.zeros(2)
    assert.equal('f32', x.grad_dtype)
    assert.error_matches(function() x.grad_dtype = 'i64' end, 'grad_dtype: gradients are f32 or bf16, not i64')
    assert.error_matches(function() x.grad_dtype = 'f16' end, "grad_dtype: no dtype 'f16'")
    local layer = new 'bf16'
    assert.error_matches(function() optim.AdamW(layer:named_parameters(), { gradients = 'f64' }) end,
      "optim.AdamW: gradients are 'f32' or 'bf16', not 'f64'")
  end)
end)
