--- Feed-forward experts as one operation, against the same network operation by operation: results and gradients.
local lumoe = require 'lumoe'
local moe = lumoe.moe
local tablex = require 'pl.tablex'

-- The experts as any user would write them.
local function step_by_step(experts)
  experts.takes_tokens = false
  function experts:forward(x, plan)
    local h = plan:linear(x, self.up, self.up_bias)
    return plan:linear(h[self.activation](h), self.down, self.down_bias)
  end
end

-- Routes by a table: tokens in turn to the experts it lists.
local function router(case)
  return moe.Router { top_k = case.top_k,
    gate = lumoe.nn.Linear { case.dim, moe.EXPERTS, bias = false },
    route = function(self, x)
      local ids = {}
      for t = 1, x:size(0) do
        ids[t] = {}
        for s = 1, case.top_k do ids[t][s] = case.to and case.to[(t - 1) % #case.to + 1][s] or (t * 7 + s) % case.experts end
      end
      return { scores = self.gate(x):float():softmax(-1), expert_ids = lumoe.tensor(ids, { dtype = 'i64' }) }
    end }
end

local function run(case, plain, recompute)
  lumoe.manual_seed(5)
  local experts = moe.FFN { experts = case.experts, hidden = case.hidden, activation = case.activation, bias = case.bias }
  local layer = moe.Layer { dim = case.dim, experts = experts, router = router(case), recompute = recompute,
    exchange = case.exchange, capacity = case.capacity, normalize = false }
  layer:initialize()
  if case.dtype then layer:to(case.dtype) end
  if plain then step_by_step(experts) end
  local x = lumoe.randn(case.tokens, case.dim)
  if case.dtype then x = x:to(case.dtype) end
  x.requires_grad = true
  local result
  for _ = 1, 2 do -- the second adds to gradients that are there
    local y = layer(x)
    result = { y = y:detach():float() }
    local loss = (y:float() * lumoe.randn(case.tokens, case.dim)):sum()
    loss:backward()
  end
  result.x = x.grad:float()
  for _, p in ipairs(layer:named_parameters()) do result[p.name] = p.tensor.grad and p.tensor.grad:float() end
  return result
end

local function compare(want, got, tolerance)
  for name, w in pairs(want) do
    local scale = w:abs():max():item()
    assert.is_true((got[name] - w):abs():max():item() <= tolerance * (scale + 1e-6), name)
  end
  for name in pairs(got) do assert.is_truthy(want[name], name) end
end

local CASES = {
  ['top-2, balanced'] = { experts = 8, top_k = 2 },
  ['one expert has all tokens, the others none'] = { experts = 5, top_k = 1, to = { { 3 } }, tokens = 300 },
  ['all experts'] = { experts = 3, top_k = 3 },
  ['experts without tokens'] = { experts = 16, top_k = 1, to = { { 2 }, { 9 }, { 9 } } },
  ['drops'] = { experts = 4, top_k = 2, capacity = { factor = 0.5, select = 'position' } },
  ['in parts'] = { experts = 4, top_k = 2, exchange = { parts = 3 } },
  ['sizes that fill nothing'] = { experts = 3, top_k = 2, dim = 37, hidden = 51, tokens = 29 },
  ['a long hidden size'] = { experts = 2, top_k = 1, dim = 16, hidden = 700, tokens = 40 },
}

describe('feed-forward experts in one operation', function()
  local activations = { 'relu', 'gelu', 'gelu_tanh', 'silu', 'swiglu' }
  local n = 0
  for name, case in tablex.sort(CASES) do
    for _, dtype in ipairs { 'f32', 'bf16' } do
      n = n + 1
      local activation, bias = activations[n % 5 + 1], n % 3 ~= 0
      it(('are those of single operations: %s, %s, %s'):format(name, dtype, activation), function()
        local c = setmetatable({ activation = activation, bias = bias, dtype = dtype ~= 'f32' and dtype or nil },
          { __index = function(_, key) return case[key] or ({ dim = 24, hidden = 40, tokens = 67 })[key] end })
        local tolerance = dtype == 'f32' and 2e-5 or 3e-2
        local want = run(c, true)
        compare(want, run(c), tolerance)
        compare(want, run(c, false, true), tolerance)
      end)
    end
  end

  it('do not depend on the number of threads, nor on the other experts', function()
    local c = { experts = 3, top_k = 1, dim = 24, hidden = 40, tokens = 200, activation = 'swiglu' }
    local threads = lumoe.threads()
    local one = run(c)
    lumoe.threads(3)
    local three = run(c)
    lumoe.threads(threads)
    for name, w in pairs(one) do assert.equal(0, (three[name] - w):abs():max():item(), name) end
  end)

  it('keep less than single operations do', function()
    local c = { experts = 4, top_k = 2, dim = 32, hidden = 256, tokens = 512, activation = 'swiglu' }
    local function kept(plain, recompute)
      lumoe.manual_seed(5)
      local experts = moe.FFN { experts = 4, hidden = c.hidden, activation = c.activation }
      local layer = moe.Layer { dim = c.dim, experts = experts, router = router(c), recompute = recompute }
      layer:initialize()
      if plain then step_by_step(experts) end
      local x = lumoe.randn(c.tokens, c.dim, { requires_grad = true })
      collectgarbage() -- of the cases before, lest it goes meanwhile
      collectgarbage()
      local before = lumoe.memory().live.activations
      local y = layer(x)
      collectgarbage()
      collectgarbage()
      return lumoe.memory().live.activations - before, y
    end
    local rows = c.tokens * c.top_k * 4
    local plain, fused, again = kept(true), kept(), kept(false, true)
    assert.is_true(plain >= rows * 3 * c.hidden)
    assert.is_true(fused >= rows * 2 * c.hidden and fused < rows * 2.3 * c.hidden)
    assert.is_true(again < rows * 0.5 * c.hidden)
  end)

  it('say what does not fit', function()
    local experts = moe.FFN { experts = 2, hidden = 8 }
    local layer = moe.Layer { dim = 4, experts = experts, router = moe.routers.top_k { dim = 4, top_k = 1 } }
    layer:initialize()
    layer(lumoe.randn(3, 4))
    local plan, up, down = layer.last_plan, experts.up, experts.down
    local function says(text, x, e, w)
      local ok, err = pcall(function() return plan:ffn(x, e, w) end)
      assert.is_false(ok)
      assert.matches(text, err, 1, true)
    end
    says('x is [2, 4] f32, but the plan has 3 arrivals', lumoe.randn(2, 4), { up = up, down = down, activation = 'relu' })
    says('wants [experts, 2 hidden, dim]', lumoe.randn(3, 4), { up = up, down = down, activation = 'swiglu' })
    says("up's bias is [2, 7] f32", lumoe.randn(3, 4), { up = up, down = down, up_bias = lumoe.zeros(2, 7), activation = 'relu' })
    says('weights are [3, 2] f32', lumoe.randn(3, 4), { up = up, down = down, activation = 'relu' }, lumoe.zeros(3, 2))
  end)
end)
