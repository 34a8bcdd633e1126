--- AdamW with bf16 moments: what rounding at random must do, in the mean and to the bit. That it is the same under all
-- layouts of ranks: layouts_spec.lua.
local lumoe = require 'lumoe'
local C = require 'lumoe.ffi'
local checkpoint = require 'lumoe.checkpoint'
local folder = require 'tests.lua.checkpoint.folder'
local nn, optim = lumoe.nn, lumoe.optim

local SIDE = 120

local Square = nn.class 'Square'
function Square:init(side) nn.parameter(self, 'matrix', { side or SIDE, side or SIDE }, { init = 'normal', std = 1 }) end

-- A matrix in the dtype, and its optimizer.
local function new(dtype, opts)
  local model = Square():to(dtype)
  opts.moments = opts.moments or 'bf16'
  return model, optim.AdamW(model:named_parameters(), opts)
end

-- What of their parameters' precision and masters there is.
local KINDS = { { 'f32' }, { 'bf16' }, { 'bf16', masters = false } }
local function name_of(kind) return kind[1] .. (kind.masters == false and ' without masters' or '') end

-- Distance of a positive number to the next in bf16.
local function gap(x) return 2 ^ (math.floor(math.log(x) / math.log(2)) - 7) end

local function mean(t) return t:detach():float():mean():item() end

-- One gradient for all elements, so that the mean over them is that of many roundings.
local function same_for_all(model, g) model.matrix.grad = lumoe.full({ SIDE, SIDE }, g) end

describe('bf16 moments', function()
  before_each(function() lumoe.manual_seed(6) end)

  for _, kind in ipairs(KINDS) do
    it('are in the mean what the paper says: ' .. name_of(kind), function()
      local model, opt = new(kind[1], { masters = kind.masters })
      local m, v, spread_m, spread_v = 0, 0, 0, 0
      for t, g in ipairs { 0.7, -1.3, 0.11, 2.9, -0.4, 0.05, 0.6, -2, 1, 0.3 } do
        same_for_all(model, g)
        opt:step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g -- Loshchilov & Hutter 2019, algorithm 2, lines 6 and 7
        local got_m, got_v = opt.state.matrix.m, opt.state.matrix.v
        assert.equal('bf16', got_m.dtype)
        assert.equal('bf16', got_v.dtype)
        -- the variance of one rounding is at most a quarter of its gap squared; a number may be off by some already
        spread_m = 0.81 * spread_m + gap(1.1 * math.abs(m) + 0.01) ^ 2 / 4
        spread_v = 0.998 * spread_v + gap(1.1 * v) ^ 2 / 4
        assert.near(m, mean(got_m), 6 * math.sqrt(spread_m) / SIDE, 'm of step ' .. t)
        assert.near(v, mean(got_v), 6 * math.sqrt(spread_v) / SIDE, 'v of step ' .. t)
      end
    end)
  end

  it('are one of the two numbers beside the exact one, each in its share', function()
    local model, opt = new('f32', { betas = { 0.9, 0.999 } })
    same_for_all(model, 1)
    opt:step()
    for slot, exact in pairs { m = 1 - 0.9, v = 1 - 0.999 } do
      local seen, below = {}, math.floor(exact / gap(exact)) * gap(exact)
      for _, row in ipairs(opt.state.matrix[slot]:float():totable()) do
        for _, x in ipairs(row) do seen[x] = (seen[x] or 0) + 1 end
      end
      local up, n = seen[below + gap(exact)], SIDE * SIDE
      assert.equal(n, seen[below] + up)
      assert.near((exact - below) / gap(exact), up / n, 3 / SIDE) -- six deviations of a share
    end
  end)

  it('decay when gradients end, where rounding to the nearest would stop', function()
    local STEPS = 3000
    local model, opt = new('bf16', { masters = false, lr = 0, betas = { 0.9, 0.999 } })
    local state, nearest = opt.state.matrix, lumoe.ones({ 1 }, { dtype = 'bf16' })
    state.v:fill_(1)
    same_for_all(model, 0)
    for _ = 1, STEPS do
      opt:step()
      nearest = (nearest:float() * 0.999):to 'bf16'
    end
    assert.equal(1, nearest:float():item()) -- not a step of 3000
    local want = 0.999 ^ STEPS
    local spread = 0 -- a step rounds by as much as it moves at a time: variance below move * gap
    for t = 1, STEPS do spread = spread * 0.998 + 0.001 * 0.999 ^ t * gap(0.999 ^ t) * 2 end
    assert.near(want, mean(state.v), 6 * math.sqrt(spread) / SIDE)
    assert.is_true(state.v:float():max():item() < 0.1)
  end)

  it('stray in a steady state by what the documentation says', function()
    local STEPS = 2500
    local a, opt_a = new('f32', { moments = 'f32', lr = 0 })
    local _, opt_b = a, optim.AdamW(a:named_parameters(), { lr = 0, moments = 'bf16' })
    for t = 1, STEPS do
      lumoe.scope(function()
        require('lumoe.random').step(t)
        a.matrix.grad = lumoe.randn(SIDE, SIDE)
        opt_a:step()
        opt_b:step()
      end)
    end
    local off = opt_b.state.matrix.v:float() / opt_a.state.matrix.v - 1
    assert.near(0, off:mean():item(), 0.002)
    assert.near(0.037, off:square():mean():item() ^ 0.5, 0.006)
    local own = opt_a.state.matrix.v / (1 - 0.999 ^ STEPS) - 1
    assert.near(0.033, own:square():mean():item() ^ 0.5, 0.004)
  end)

  for _, kind in ipairs(KINDS) do
    it('give the same bits for a seed, with one thread and with two: ' .. name_of(kind), function()
      local threads = C.lm_threads()
      local function train(seed, n)
        lumoe.manual_seed(seed)
        C.lm_set_threads(n)
        local model = Square(211):to(kind[1]) -- 44,521 elements: no multiple of a chunk, and above where threads begin
        local opt = optim.AdamW(model:named_parameters(), { lr = 0.01, masters = kind.masters, moments = 'bf16' })
        for t = 1, 3 do
          require('lumoe.random').step(t)
          model.matrix.grad = lumoe.randn(211, 211)
          opt:step()
        end
        local bits = { model.matrix:detach():float():totable() }
        for _, slot in ipairs { 'm', 'v' } do bits[#bits + 1] = opt.state.matrix[slot]:float():totable() end
        return bits
      end
      local one, two, other = train(3, 1), train(3, 2), train(4, 1)
      C.lm_set_threads(threads)
      assert.same(one, two)
      assert.is_not.same(one[3], other[3])
    end)
  end

  it('of a parameter with a master leave it and its rounding as they are', function()
    local model, opt = new('bf16', { lr = 0.02 })
    for t = 1, 5 do
      require('lumoe.random').step(t)
      model.matrix.grad = lumoe.randn(SIDE, SIDE)
      opt:step()
      assert.same(opt.state.matrix.master:to('bf16'):totable(), model.matrix:detach():totable())
    end
    assert.equal('f32', opt.state.matrix.master.dtype)
  end)

  it('take half the memory', function()
    local n = SIDE * SIDE
    local function bytes(kind, moments)
      collectgarbage()
      collectgarbage()
      local before = lumoe.memory().live.optimizer
      local _, opt = new(kind[1], { masters = kind.masters, moments = moments })
      return lumoe.memory().live.optimizer - before, opt
    end
    for _, kind in ipairs(KINDS) do
      local wide, narrow = bytes(kind, 'f32'), bytes(kind, 'bf16')
      assert.near(4 * n, wide - narrow, 4096)
    end
  end)

  it('are clipped as others are', function()
    local one, opt_one = new('f32', { lr = 0.1 })
    local two, opt_two = new('f32', { lr = 0.1 })
    two:load_state(one:state())
    one.matrix.grad = lumoe.full({ SIDE, SIDE }, 4)
    two.matrix.grad = lumoe.full({ SIDE, SIDE }, 2)
    opt_one:step { grad_scale = 0.5 }
    opt_two:step()
    assert.same(two.matrix:detach():totable(), one.matrix:detach():totable())
    assert.same(opt_two.state.matrix.v:float():totable(), opt_one.state.matrix.v:float():totable())
  end)

  it('hold what is not a number where a gradient is none, and nowhere else', function()
    local model, opt = new('bf16', { masters = false })
    local g = lumoe.ones(SIDE, SIDE)
    g[1][2] = 0 / 0
    model.matrix.grad = g
    opt:step()
    for _, t in ipairs { model.matrix:detach(), opt.state.matrix.m, opt.state.matrix.v } do
      local rows = t:float():totable()
      for i, row in ipairs(rows) do
        for j, x in ipairs(row) do assert.equal(i == 2 and j == 3, x ~= x) end
      end
    end
  end)

  it('are both so, and need to be told how to round', function()
    local pointer = require('lumoe.handle').pointer
    local p, m, v = lumoe.ones(3, 2), lumoe.zeros({ 3, 2 }, { dtype = 'bf16' }), lumoe.zeros(3, 2)
    p.grad = lumoe.ones(3, 2)
    local rounding = require('ffi').new 'lm_rounding'
    local function refused(second, how, message)
      local st = C.lm_optim_adamw(pointer(p), nil, pointer(m), pointer(second), 1, 0.9, 0.9, 1, 0, 1, 1, how)
      assert.is_true(st < 0)
      assert.matches(message, require('ffi').string(C.lm_last_error()))
    end
    refused(v, rounding, 'adamw: m is %[3, 2%] bf16, but v is %[3, 2%] f32')
    refused(v:to 'bf16', nil, 'adamw: bf16 moments need random rounding')
    assert.equal(6, p:sum():item())
  end)

  it('are f32 or bf16', function()
    local message = select(2, pcall(optim.AdamW, Square():named_parameters(), { moments = 'f16' }))
    assert.matches("optim.AdamW: moments are 'f32' or 'bf16', not 'f16'", message)
    assert.matches("optim.SGD: unknown option 'moments'",
      select(2, pcall(optim.SGD, Square():named_parameters(), { moments = 'bf16' })))
  end)
end)

describe('training with bf16 moments', function()
  local Net = nn.class 'Net'
  function Net:init() self.layers = { nn.Linear { 16, 64 }, nn.Linear { 64, 1 } } end
  function Net:forward(x) return self.layers[2](self.layers[1](x):gelu()) end

  -- The loss at the end of fitting a network to another one, and at the start.
  local function fit(dtype, opts)
    lumoe.manual_seed(8)
    local teacher, net = Net():initialize(), Net()
    lumoe.manual_seed(9)
    net:initialize():to(dtype)
    opts.lr, opts.weight_decay = 3e-3, 0
    local opt, last = optim.AdamW(net:named_parameters(), opts), 0
    local first
    for t = 1, 600 do
      lumoe.scope(function()
        require('lumoe.random').step(t)
        local x = lumoe.randn({ 64, 16 }, { site = 'x' })
        local y = lumoe.no_grad(function() return teacher(x) end)
        local loss = (net(x:to(dtype)):float() - y):square():mean()
        loss:backward()
        opt:step { lr = 3e-3 * (1 - t / 601) }
        opt:zero_grad()
        first = first or loss:item()
        if t > 550 then last = last + loss:item() / 50 end
      end)
    end
    return last, first
  end

  it('ends where f32 moments end', function()
    for _, case in ipairs { { 'f32' }, { 'bf16' }, { 'bf16', masters = false } } do
      local wide, first = fit(case[1], { masters = case.masters })
      local narrow = fit(case[1], { masters = case.masters, moments = 'bf16' })
      assert.is_true(narrow < first / 100)
      assert.near(wide, narrow, 0.05 * wide)
    end
  end)
end)

describe('a checkpoint with bf16 moments', function()
  local function train(model, opt, from, to)
    for t = from, to do
      require('lumoe.random').step(t)
      model.matrix.grad = lumoe.randn(SIDE, SIDE)
      opt:step()
    end
  end
  local function bits(model, opt)
    local list = { model.matrix:detach():float():totable() }
    for _, slot in ipairs { 'm', 'v', 'master' } do
      local t = opt.state.matrix[slot]
      list[slot] = t and t:float():totable()
    end
    return list
  end

  for _, kind in ipairs(KINDS) do
    it('goes on to the bit: ' .. name_of(kind), function()
      folder.with(function(dir)
        lumoe.manual_seed(5)
        local model, opt = new(kind[1], { masters = kind.masters })
        train(model, opt, 1, 3)
        local path = checkpoint.save(dir, { model = model, optimizer = opt, step = 3 })
        train(model, opt, 4, 6)
        lumoe.manual_seed(77)
        local other, again = new(kind[1], { masters = kind.masters })
        checkpoint.load(path, { model = other, optimizer = again })
        train(other, again, 4, 6)
        assert.same(bits(model, opt), bits(other, again))
      end)
    end)
  end

  it('is loaded into f32 ones as it is, and f32 ones into bf16 to the nearest', function()
    folder.with(function(dir)
      local wide, opt_wide = new('bf16', { moments = 'f32' })
      local narrow, opt_narrow = new('bf16', {})
      train(wide, opt_wide, 1, 3)
      train(narrow, opt_narrow, 1, 3)
      local from_wide = checkpoint.save(dir .. '/wide', { model = wide, optimizer = opt_wide, step = 3 })
      local from_narrow = checkpoint.save(dir .. '/narrow', { model = narrow, optimizer = opt_narrow, step = 3 })
      local want_wide, want_narrow = bits(wide, opt_wide), bits(narrow, opt_narrow)
      for _, slot in ipairs { 'm', 'v' } do want_wide[slot] = opt_wide.state.matrix[slot]:to('bf16'):totable() end
      checkpoint.load(from_wide, { model = narrow, optimizer = opt_narrow })
      assert.same(want_wide, bits(narrow, opt_narrow))
      checkpoint.load(from_narrow, { model = wide, optimizer = opt_wide })
      assert.same(want_narrow, bits(wide, opt_wide))
      assert.same({ 'f32', 'bf16' }, { opt_wide.state.matrix.v.dtype, opt_narrow.state.matrix.v.dtype })
      train(wide, opt_wide, 4, 5)
      train(narrow, opt_narrow, 4, 5)
    end)
  end)
end)
