--- One rank's model in a tier: what is where and when, and what can go wrong.
local ffi = require 'ffi'
local lfs = require 'lfs'
local lumoe = require 'lumoe'
local folder = require 'tests.lua.checkpoint.folder'
local offload = require 'lumoe.dist.offload'
local dist, nn, optim = lumoe.dist, lumoe.nn, lumoe.optim

pcall(ffi.cdef, 'int truncate(const char *path, long length);')

local DIM, LAYERS = 128, 6
local UNIT = DIM * DIM + DIM -- elements of a layer

local Stack = nn.class 'Stack'
function Stack:init()
  self.layers = {}
  for i = 1, LAYERS do self.layers[i] = nn.Linear { DIM, DIM } end
end
function Stack:forward(x)
  for _, layer in ipairs(self.layers) do x = layer(x):gelu() end
  return x:float():square():mean()
end

local function made(dir, to)
  local model = nn.later(Stack)
  return dist.shard(model, dist.mesh { offload = { to = to, dir = dir } })
end

local function live() return lumoe.memory().live end

local function descriptors(dir) -- that lead into the folder
  local list = {}
  for fd in lfs.dir '/proc/self/fd' do
    local path = '/proc/self/fd/' .. fd
    if (lfs.symlinkattributes(path, 'target') or ''):find(dir, 1, true) then list[#list + 1] = path end
  end
  return list
end

local function collect()
  jit.flush() -- compiled traces hold on to the closures that they were made of
  collectgarbage()
  collectgarbage()
end

local function step(model, optimizer)
  lumoe.scope(function() model(lumoe.randn(4, DIM)):backward() end)
  dist.reduce_gradients(model)
  local norm = dist.grad_norm(model)
  optimizer:step { grad_scale = optim.clip_scale(norm, 1) }
  optimizer:zero_grad()
  return norm
end

describe('an offloaded model', function()
  before_each(function()
    collect()
    lumoe.manual_seed(3)
  end)

  it('has in memory what its unit needs, and gives all of it back', function()
    folder.with(function(dir)
      local before = live()
      local function train()
        local model = made(dir, 'parameters')
        local optimizer = optim.AdamW(model:named_parameters(), {})
        assert.equal(before.total, live().total)
        for _ = 1, 2 do step(model, optimizer) end -- the second knows which unit follows
        lumoe.reset_peak_memory()
        lumoe.scope(function() model(lumoe.randn(4, DIM)):backward() end)
        local peak = lumoe.memory().peak
        assert.is_true(peak.parameters >= before.parameters + 8 * UNIT, 'nothing was read ahead')
        assert.is_true(peak.parameters <= before.parameters + 2 * 4 * UNIT + 8192, tostring(peak.parameters))
        assert.is_true(peak.gradients <= before.gradients + 2 * 4 * UNIT, tostring(peak.gradients))
        model:zero_grad()
        optimizer:step() -- nothing to do, and what was read ahead goes
        assert.equal(before.total, live().total)
        assert.equal(1, #descriptors(dir))
      end
      train()
      collect()
      assert.equal(before.total, live().total)
      assert.equal(0, #descriptors(dir))
    end)
  end)

  it('does without reading ahead where memory is short', function()
    folder.with(function(dir)
      local function losses(save)
        lumoe.manual_seed(3)
        local model, list = made(dir, 'parameters'), {}
        local optimizer, before = optim.AdamW(model:named_parameters(), {}), live().total
        for i = 1, 3 do
          lumoe.scope(function()
            local loss = model(lumoe.randn(4, DIM))
            loss:backward()
            list[i] = loss:item()
          end)
          if i == 1 then lumoe.reset_peak_memory() end
          if i == 2 and save then lumoe.memory_limit(lumoe.memory().peak.total - save) end
          optimizer:zero_grad()
        end
        local peak = lumoe.memory().peak.total - before
        lumoe.memory_limit(0)
        return list, peak
      end
      local want, peak = losses()
      local got, less = losses(3 * UNIT) -- of 4 that are read ahead
      assert.same(want, got)
      assert.is_true(less <= peak, ('%d %d'):format(less, peak))
      assert.error_matches(function() losses(9 * UNIT) end, 'no memory')
      lumoe.memory_limit(0)
      lumoe.memory_limit(live().total + peak - 3 * UNIT, { soft = true })
      local softly, soft_peak = losses()
      assert.same(want, softly)
      assert.is_true(soft_peak <= peak - 3 * UNIT, tostring(soft_peak))
      lumoe.memory_limit(1, { soft = true })
      assert.same(want, (losses())) -- no error
      lumoe.memory_limit(0, { soft = true })
    end)
  end)

  it('keeps its parameters where only the optimizer is offloaded', function()
    folder.with(function(dir)
      local before = live()
      local model = made(dir, 'optimizer')
      local optimizer = optim.AdamW(model:named_parameters(), {})
      local kept = live().parameters - before.parameters
      assert.is_true(kept >= 4 * LAYERS * UNIT and kept < 4 * LAYERS * UNIT + LAYERS * 2048)
      lumoe.reset_peak_memory()
      lumoe.scope(function() model(lumoe.randn(4, DIM)):backward() end)
      assert.is_true(lumoe.memory().peak.gradients <= before.gradients + 2 * 4 * UNIT)
      assert.equal(before.gradients, live().gradients)
      assert.equal(before.optimizer, live().optimizer)
      for _, p in ipairs(model:named_parameters()) do
        assert.is_nil(p.tensor.grad)
        assert.near(offload.squares(p), offload.gradient(p):square():sum():item(), 1e-6)
      end
      local norm = dist.grad_norm(model)
      optimizer:zero_grad()
      assert.equal(0, dist.grad_norm(model))
      assert.is_true(norm > 0)
    end)
  end)

  it('goes forward without backward, and can be written to', function()
    folder.with(function(dir)
      local model, plain = made(dir, 'parameters'), Stack():initialize() and Stack()
      plain:initialize()
      local x = lumoe.randn(3, DIM)
      for _ = 1, 3 do
        lumoe.no_grad(function() assert.equal(plain(x):item(), model(x):item()) end)
      end
      dist.gathered(model, function()
        lumoe.no_grad(function() model.layers[2].weight:fill_(0.25) end)
      end)
      lumoe.no_grad(function() plain.layers[2].weight:fill_(0.25) end)
      lumoe.no_grad(function() assert.equal(plain(x):item(), model(x):item()) end)
      assert.error_matches(function() return model.layers[1].weight + 1 end, "parameter 'layers.1.weight' is not gathered")
    end)
  end)

  it('may share its optimizer with another', function()
    folder.with(function(dir)
      local Two = nn.class 'Two'
      function Two:init() self.a, self.b = Stack(), Stack() end
      function Two:forward(x) return self.a(x) + self.b(x) end
      local function result(shard_all)
        lumoe.manual_seed(3)
        local two = Two()
        two:initialize()
        shard_all(two)
        local optimizer = optim.AdamW(two:named_parameters(), {})
        for _ = 1, 2 do
          lumoe.scope(function() two(lumoe.randn(4, DIM)):backward() end)
          optimizer:step()
          optimizer:zero_grad()
        end
        return lumoe.no_grad(function() return two(lumoe.ones(4, DIM)):item() end)
      end
      local mesh = dist.mesh { offload = { to = 'parameters', dir = dir } }
      assert.equal(result(function() end), result(function(two)
        dist.shard(two.a, mesh) -- a tier for each
        dist.shard(two.b, mesh)
      end))
    end)
  end)

  it('comes back to memory, and may leave it again', function()
    folder.with(function(dir)
      local before = live()
      local x = lumoe.randn(4, DIM)
      local model = made(dir, 'parameters')
      local optimizer = optim.AdamW(model:named_parameters(), {})
      step(model, optimizer)
      local want = lumoe.no_grad(function() return model(x):item() end)
      dist.unshard(model)
      assert.is_true(live().parameters - before.parameters >= 4 * LAYERS * UNIT)
      assert.is_nil(offload.of(model:named_parameters()[1]))
      assert.equal(want, lumoe.no_grad(function() return model(x):item() end))
      dist.shard(model)
      assert.equal(before.parameters, live().parameters)
      assert.error_matches(function() optimizer:step() end, "'layers.1.bias' was offloaded, or brought back, after the optimizer was made")
      step(model, optim.AdamW(model:named_parameters(), {}))
      assert.are_not.equal(want, lumoe.no_grad(function() return model(x):item() end))
    end)
  end)

  it('that finds no room says so when it is sharded', function()
    folder.with(function(dir)
      folder.write(dir .. '/../script.lua', [[
        local lumoe = require 'lumoe'
        local model = lumoe.nn.Linear { 1000, 1000 }
        lumoe.dist.shard(model, lumoe.dist.mesh { offload = { to = 'optimizer', dir = arg[1] } })]])
      local said = folder.lumoe(('%s/../script.lua %s'):format(dir, dir), 'ulimit -f 1000;')
      os.remove(dir .. '/../script.lua')
      assert.matches('offload: no room for 4000000 bytes in a file in ' .. dir, said)
      assert.matches('exit 1', said)
    end)
  end)

  it('whose file is damaged fails where it is read', function()
    folder.with(function(dir)
      local model = made(dir, 'parameters')
      assert.equal(0, ffi.C.truncate(descriptors(dir)[1], 1000))
      assert.error_matches(function() model(lumoe.randn(4, DIM)) end,
        'offload: cannot read %d+ bytes at byte %d+ of a file in ' .. dir .. ': it is cut off there')
    end)
  end)

  it('is clipped in the update alone', function()
    folder.with(function(dir)
      local model = made(dir, 'optimizer')
      lumoe.scope(function() model(lumoe.randn(4, DIM)):backward() end)
      assert.error_matches(function() dist.clip_grad_norm(model, 1e-9) end,
        "clip_grad_norm: the gradient of 'layers.1.bias' is offloaded; let the update do it: optimizer:step")
    end)
  end)
end)
