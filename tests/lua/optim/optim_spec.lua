local lumoe = require 'lumoe'
local nn, optim = lumoe.nn, lumoe.optim

-- The algorithms in plain Lua, one number at a time. state is a table of the element's own.
local reference = {}

-- Loshchilov & Hutter 2019, algorithm 2, with a schedule multiplier of 1 and PyTorch's lr · decay.
function reference.adamw(o)
  return function(p, g, s, t, decayed)
    s.m = o.beta1 * (s.m or 0) + (1 - o.beta1) * g
    s.v = o.beta2 * (s.v or 0) + (1 - o.beta2) * g * g
    local m, v = s.m / (1 - o.beta1 ^ t), s.v / (1 - o.beta2 ^ t)
    return p - o.lr * (m / (math.sqrt(v) + o.eps) + (decayed and o.decay or 0) * p)
  end
end

-- PyTorch's: velocity without dampening; Nesterov looks one step ahead.
function reference.sgd(o)
  return function(p, g, s)
    g = g + o.decay * p
    if o.momentum == 0 then return p - o.lr * g end
    s.b = o.momentum * (s.b or 0) + g
    return p - o.lr * (o.nesterov and g + o.momentum * s.b or s.b)
  end
end

-- Shazeer & Stern 2018, algorithms 4 (matrices) and 5 (vectors), with the absolute step size lr.
local function adafactor(o, p, g, state, t)
  local beta2, update, squares, n = 1 - t ^ -0.8, {}, 0, #p * #p[1]
  local vector = o.vector
  if vector then
    state.v = state.v or {}
    for j, v in ipairs(g[1]) do state.v[j] = beta2 * (state.v[j] or 0) + (1 - beta2) * (v * v + 1e-30) end
  else
    state.r, state.c = state.r or {}, state.c or {}
    local columns = {}
    for i, row in ipairs(g) do
      local sum = 0
      for j, v in ipairs(row) do
        sum = sum + v * v + 1e-30
        columns[j] = (columns[j] or 0) + v * v + 1e-30
      end
      state.r[i] = beta2 * (state.r[i] or 0) + (1 - beta2) * sum
    end
    for j, sum in ipairs(columns) do state.c[j] = beta2 * (state.c[j] or 0) + (1 - beta2) * sum end
  end
  local total = 0
  for _, r in ipairs(state.r or {}) do total = total + r end
  for i, row in ipairs(g) do
    update[i] = {}
    for j, v in ipairs(row) do
      local second = vector and state.v[j] or state.r[i] * state.c[j] / total
      update[i][j] = v / math.sqrt(second)
      squares = squares + update[i][j] ^ 2 / n
    end
  end
  local clip = math.max(1, math.sqrt(squares) / o.clip)
  for i, row in ipairs(update) do
    for j, u in ipairs(row) do p[i][j] = p[i][j] * (1 - o.lr * o.decay) - o.lr * u / clip end
  end
end

local ROWS, COLS, STEPS = 5, 7, 12

local Two = nn.class 'Two'
function Two:init()
  nn.parameter(self, 'matrix', { ROWS, COLS }, { init = 'normal', std = 1 })
  nn.parameter(self, 'vector', { COLS }, { init = 'normal', std = 1 })
end

-- Gradients of step t, as tables, and given to the parameters through backward.
local function gradients(m, t)
  m:zero_grad()
  require('lumoe.random').step(t)
  local a, b = lumoe.randn(ROWS, COLS) * (0.1 + t % 3), lumoe.randn(COLS)
  a = a:to(m.matrix.dtype)
  local loss = (m.matrix * a):float():sum() + (m.vector * b):sum()
  loss:backward()
  return a:float():totable(), b:totable()
end

local function near(want, got, tolerance, what)
  for i, row in ipairs(want) do
    for j, v in ipairs(row) do assert.near(v, got[i][j], tolerance * (1 + math.abs(v)), ('%s[%d][%d]'):format(what, i, j)) end
  end
end

local function elementwise(rule, p, g, states, t, decayed)
  for i, row in ipairs(p) do
    for j in ipairs(row) do
      local key = i * 100 + j
      states[key] = states[key] or {}
      row[j] = rule(row[j], g[i][j], states[key], t, decayed)
    end
  end
end

local cases = {
  { name = 'AdamW', kind = 'AdamW', opts = { lr = 0.03, betas = { 0.9, 0.98 }, eps = 1e-6, weight_decay = 0.1 },
    rule = reference.adamw { lr = 0.03, beta1 = 0.9, beta2 = 0.98, eps = 1e-6, decay = 0.1 } },
  { name = 'AdamW with its defaults', kind = 'AdamW', opts = {},
    rule = reference.adamw { lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.01 } },
  { name = 'SGD', kind = 'SGD', opts = { lr = 0.05 }, rule = reference.sgd { lr = 0.05, momentum = 0, decay = 0 } },
  { name = 'SGD with momentum and decay', kind = 'SGD', opts = { lr = 0.05, momentum = 0.9, weight_decay = 0.1 },
    rule = reference.sgd { lr = 0.05, momentum = 0.9, decay = 0.1 } },
  { name = 'SGD with Nesterov\'s momentum', kind = 'SGD', opts = { lr = 0.05, momentum = 0.9, nesterov = true },
    rule = reference.sgd { lr = 0.05, momentum = 0.9, decay = 0, nesterov = true } },
  { name = 'Adafactor', kind = 'Adafactor', opts = { lr = 0.02, clip = 1 }, adafactor = { lr = 0.02, clip = 1, decay = 0 } },
  { name = 'Adafactor with decay, clipping more', kind = 'Adafactor', opts = { lr = 0.02, clip = 0.4, weight_decay = 0.1 },
    adafactor = { lr = 0.02, clip = 0.4, decay = 0.1 } },
}

describe('optim', function()
  before_each(function() lumoe.manual_seed(4) end)

  for _, case in ipairs(cases) do
    for _, dtype in ipairs { 'f32', 'bf16' } do
      it(('%s follows its paper in %s'):format(case.name, dtype), function()
        local m = Two():to(dtype)
        assert.equal(dtype, m.matrix.dtype)
        local opt = optim[case.kind](m:named_parameters(), case.opts)
        local p = { matrix = m.matrix:detach():float():totable(), vector = { m.vector:detach():totable() } }
        local states = { matrix = {}, vector = {} }
        for t = 1, STEPS do
          local a, b = gradients(m, t)
          opt:step()
          for name, g in pairs { matrix = a, vector = { b } } do
            if case.adafactor then
              case.adafactor.vector = name == 'vector'
              adafactor(case.adafactor, p[name], g, states[name], t)
            else
              elementwise(case.rule, p[name], g, states[name], t, name == 'matrix')
            end
          end
          -- In bf16 the master goes on exactly; the parameter is its rounding.
          local master = dtype == 'bf16' and opt.state.matrix.master or m.matrix:detach()
          near(p.matrix, master:totable(), 2e-5, 'matrix')
          near({ m.vector:detach():totable() }, p.vector, 2e-5, 'vector')
          if dtype == 'bf16' then near(master:to('bf16'):totable(), m.matrix:detach():totable(), 0, 'rounded') end
        end
      end)
    end
  end

  it('bf16 parameters take steps far below their own precision', function()
    local m = Two():to 'bf16'
    local opt = optim.SGD(m:named_parameters(), { lr = 1 })
    local before = opt.state.matrix.master:totable()
    for _ = 1, 8 do
      m:zero_grad()
      local loss = (m.matrix:float() * 2 ^ -12):sum()
      loss:backward()
      opt:step()
    end
    local after = opt.state.matrix.master:totable()
    assert.near(before[2][3] - 8 * 2 ^ -12, after[2][3], 1e-6)
  end)

  it('without masters bf16 takes them in the mean, alike for a seed', function()
    local SIDE, RATE, TIMES = 96, 2 ^ -12, 8
    local Square = nn.class 'Square'
    function Square:init() nn.parameter(self, 'matrix', { SIDE, SIDE }, { init = 'ones' }) end
    local function train(kind, seed, masters)
      lumoe.manual_seed(seed)
      local m = Square():to 'bf16'
      local opt = optim[kind](m:named_parameters(), { lr = RATE, masters = masters })
      m.matrix.grad = lumoe.ones(SIDE, SIDE)
      for _ = 1, TIMES do opt:step() end
      return m.matrix:detach():float(), opt
    end
    for _, kind in ipairs { 'AdamW', 'SGD', 'Adafactor' } do -- each moves by its rate when all gradients are 1
      local got, opt = train(kind, 3, false)
      assert.is_true(opt.state.matrix.master == nil)
      local spread = 2 ^ -8 / 2 * math.sqrt(TIMES) / SIDE -- of the mean; a step rounds by 2^-8 at most
      local decay = kind == 'AdamW' and 0.01 * RATE * TIMES or 0
      assert.near(1 - RATE * TIMES - decay, got:mean():item(), 6 * spread)
      assert.same(got:totable(), train(kind, 3, false):totable())
      assert.is_not.same(got:totable(), train(kind, 4, false):totable())
      assert.is_not.near(1, got:mean():item(), RATE) -- to the nearest, nothing would have moved
    end
  end)

  it('clips by the global norm through grad_scale', function()
    local scaled, plain = Two(), Two()
    plain:load_state(scaled:state())
    local one = optim.AdamW(scaled:named_parameters(), { lr = 0.1 })
    local two = optim.AdamW(plain:named_parameters(), { lr = 0.1 })
    gradients(scaled, 1)
    local a, b = gradients(plain, 1)
    local squares = 0
    for _, row in ipairs(a) do for _, v in ipairs(row) do squares = squares + v * v end end
    for _, v in ipairs(b) do squares = squares + v * v end
    local norm = lumoe.dist.grad_norm(scaled)
    assert.near(math.sqrt(squares), norm, 1e-4)
    assert.near(norm, lumoe.dist.clip_grad_norm(plain, 0.5), 1e-4)
    assert.near(0.5, lumoe.dist.grad_norm(plain), 1e-5)
    assert.near(0.5 / norm, optim.clip_scale(norm, 0.5), 1e-12)
    assert.equal(1, optim.clip_scale(0.4, 0.5))
    one:step { grad_scale = optim.clip_scale(norm, 0.5) }
    two:step()
    near(plain.matrix:detach():totable(), scaled.matrix:detach():totable(), 1e-5, 'matrix')
  end)

  it('takes the rate of the step, and skips what has no gradient', function()
    local m = Two()
    local opt = optim.SGD(m:named_parameters(), { lr = 1 })
    local matrix, vector = m.matrix:detach():clone(), m.vector:detach():totable()
    local loss = (m.matrix * 1):sum()
    loss:backward()
    opt:step { lr = 0.25 }
    near((matrix - 0.25):totable(), m.matrix:detach():totable(), 1e-6, 'matrix')
    assert.same(vector, m.vector:detach():totable())
    opt:zero_grad()
    assert.is_true(m.matrix.grad == nil)
  end)

  it('gives its state by name, in its own book', function()
    local before = lumoe.memory().live.optimizer
    local m = Two():to 'bf16'
    local function names(opt)
      local list = {}
      for name in pairs(opt:tensors()) do list[#list + 1] = name end
      table.sort(list)
      return list
    end
    local opt = lumoe.scope(function() return optim.AdamW(m:named_parameters(), {}) end)
    assert.same({ 'optimizer.matrix.m', 'optimizer.matrix.master', 'optimizer.matrix.v', 'optimizer.vector.m',
      'optimizer.vector.v' }, names(opt))
    assert.is_true(lumoe.memory().live.optimizer - before >= 4 * (3 * ROWS * COLS + 2 * COLS))
    for _, t in pairs(opt:tensors()) do assert.equal('f32', t.dtype) end
    assert.same({ 'optimizer.matrix.col', 'optimizer.matrix.master', 'optimizer.matrix.row', 'optimizer.vector.row' },
      names(optim.Adafactor(m:named_parameters(), {})))
    assert.same({ 'optimizer.matrix.master' }, names(optim.SGD(m:named_parameters(), {})))
  end)

  it('goes on from its state as if it had not stopped', function()
    for _, kind in ipairs { 'AdamW', 'SGD', 'Adafactor' } do
      local whole, rest = Two(), Two()
      local opts = kind == 'SGD' and { lr = 0.1, momentum = 0.9 } or { lr = 0.1 }
      local a, b = optim[kind](whole:named_parameters(), opts), optim[kind](rest:named_parameters(), opts)
      for t = 1, 3 do
        gradients(whole, t)
        a:step()
      end
      rest:load_state(whole:state())
      local state = a:tensors()
      for name, t in pairs(b:tensors()) do t:copy_(state[name]) end
      b.steps = a.steps
      for t = 4, 6 do
        gradients(whole, t)
        a:step()
        gradients(rest, t)
        b:step()
      end
      near(whole.matrix:detach():totable(), rest.matrix:detach():totable(), 0, kind)
    end
  end)

  it('trains: a line through points', function()
    local line = nn.Linear { 2, 1 }
    local opt = optim.AdamW(line:named_parameters(), { lr = 0.05, weight_decay = 0 })
    local x = lumoe.randn(64, 2)
    local y = x:linear(lumoe.tensor { { 2, -3 } }, lumoe.tensor { 0.5 })
    for _ = 1, 300 do
      lumoe.scope(function()
        (line(x) - y):square():mean():backward()
        opt:step()
        opt:zero_grad()
      end)
    end
    assert.near(2, line.weight:detach():totable()[1][1], 1e-2)
    assert.near(-3, line.weight:detach():totable()[1][2], 1e-2)
    assert.near(0.5, line.bias:detach():totable()[1], 1e-2)
  end)

  it('mistakes are errors with a name', function()
    local m = Two()
    for want, f in pairs {
      ["optim.AdamW: unknown option 'beta'"] = function() optim.AdamW(m:named_parameters(), { beta = 1 }) end,
      ['optim.SGD: wants the list that module:named_parameters() gives'] = function() optim.SGD(m:parameters(), {}) end,
    } do
      local ok, message = pcall(f)
      assert.is_false(ok)
      assert.truthy(message:find(want, 1, true), message)
    end
  end)
end)
