local ffi = require 'ffi'
local lumoe = require 'lumoe'
local folder = require 'tests.lua.checkpoint.folder'
local Stream = require 'lumoe.optim.stream'
local Tier = require 'lumoe.dist.tier'
local nn, optim, dist = lumoe.nn, lumoe.optim, lumoe.dist

-- Sizes around a kernel's chunk of 1024 and a bucket; one without elements, one without a gradient at times.
local SHAPES = { a = { 40, 61 }, b = { 3 }, c = { 2, 5, 700 }, d = { 0, 4 }, e = { 1024 }, f = { 1025 }, g = { 130, 17 } }

local Parts = nn.class 'Parts'
function Parts:init(mesh)
  for name, shape in pairs(SHAPES) do nn.parameter(self, name, shape, { init = 'normal', std = 1, mesh = mesh }) end
end

-- The gradients of step t; every third step leaves some parameters without.
local function gradients(model, t)
  model:zero_grad()
  require('lumoe.random').step(t)
  for _, p in ipairs(model:named_parameters()) do
    local g = lumoe.randn(p.tensor:shape_table())
    if t % 3 ~= 0 or p.name < 'd' then p.tensor.grad = g end
  end
end

local function bits(t)
  t = t:detach():float():contiguous()
  return ffi.string(t:data_ptr(), 4 * t:numel())
end

local CASES = {
  { 'AdamW', { lr = 0.03, weight_decay = 0.1 } },
  { 'AdamW', { lr = 0.03, masters = false } },
  { 'AdamW', { lr = 0.03, moments = 'bf16' } },
  { 'AdamW', { lr = 0.03, masters = false, moments = 'bf16' } },
  { 'SGD', { lr = 0.05 } },
  { 'SGD', { lr = 0.05, momentum = 0.9, weight_decay = 0.1, nesterov = true } },
}

local function offload(dir, bucket) return dist.mesh { offload = { to = 'optimizer', dir = dir, bucket = bucket } } end

describe('optimizer state in a tier', function()
  before_each(function()
    lumoe.manual_seed(4)
    collectgarbage()
    collectgarbage()
  end)

  for _, case in ipairs(CASES) do
    for _, dtype in ipairs { 'f32', 'bf16' } do
      for _, bucket in ipairs { 1, 40000, 2 ^ 21 } do -- 1: the smallest there can be
        local what = case[1] .. (case[2].masters == false and ' without masters' or '') .. (case[2].moments and ', bf16 moments' or '')
        it(('gives the very bits of %s in memory: %s, buckets of %d bytes'):format(what, dtype, bucket), function()
          folder.with(function(dir)
            local here, away = Parts():to(dtype), Parts(offload(dir, bucket)):to(dtype)
            away:load_state(here:state())
            local a = optim[case[1]](here:named_parameters(), case[2])
            local b = optim[case[1]](away:named_parameters(), case[2])
            for t = 1, 5 do
              gradients(here, t)
              gradients(away, t)
              a:step { grad_scale = 0.7 }
              b:step { grad_scale = 0.7 }
              for name in pairs(SHAPES) do
                assert.is_true(bits(here[name]) == bits(away[name]), ('step %d: %s'):format(t, name))
              end
            end
            for name in pairs(SHAPES) do
              for _, slot in ipairs(b.offloaded:slots(name)) do
                assert.is_true(bits(a.state[name][slot]) == bits(b.offloaded:read(name, slot)), name .. ' ' .. slot)
              end
            end
          end)
        end)
      end
    end
  end

  it('takes no memory but the windows of an update', function()
    folder.with(function(dir)
      local model = Parts(offload(dir, 40000)):to 'bf16'
      local before = lumoe.memory().live
      local opt = optim.AdamW(model:named_parameters(), {})
      gradients(model, 1)
      opt:zero_grad()
      collectgarbage()
      collectgarbage()
      assert.equal(before.optimizer, lumoe.memory().live.optimizer)
      gradients(model, 1)
      lumoe.reset_peak_memory()
      opt:step()
      local peak = lumoe.memory().peak.optimizer - before.optimizer
      assert.is_true(peak > 0 and peak <= 3 * 40000 + 12 * 1024, tostring(peak)) -- a buffer is rounded up
      assert.equal(before.optimizer, lumoe.memory().live.optimizer)
      local elements = 0
      for _, shape in pairs(SHAPES) do
        local n = 1
        for _, size in ipairs(shape) do n = n * size end
        elements = elements + math.ceil(n / 1024) * 1024
      end
      local reserved = 0
      for _, stream in ipairs(opt.offloaded.streams) do
        reserved = reserved + 4 * stream.elements * #stream.slots
      end
      assert.equal(reserved, opt.offloaded.streams[1].tier:bytes().reserved)
      assert.is_true(reserved <= 4 * 4 * elements)
    end)
  end)

  it('takes half the space for bf16 moments', function()
    folder.with(function(dir)
      local model = Parts(offload(dir)):to 'bf16'
      local opt = optim.AdamW(model:named_parameters(), { moments = 'bf16' })
      local reserved = 0
      for _, stream in ipairs(opt.offloaded.streams) do
        reserved = reserved + (stream.dtype.master and 8 or 4) * stream.elements
      end
      assert.equal(reserved, opt.offloaded.streams[1].tier:bytes().reserved)
      opt.offloaded:write('c', 'm', lumoe.full({ 2, 5, 700 }, 3))
      opt.offloaded:write('c', 'v', lumoe.full({ 2, 5, 700 }, 2))
      assert.equal('bf16', opt.offloaded:read('c', 'm').dtype)
      assert.equal(21000, opt.offloaded:read('c', 'm'):float():sum():item())
      assert.equal(14000, opt.offloaded:read('c', 'v'):float():sum():item())
      assert.equal(0, opt.offloaded:read('a', 'm'):float():sum():item())
      assert.is_true(bits(model.c) == bits(opt.offloaded:read('c', 'master')))
    end)
  end)

  it('can be read and written by name', function()
    folder.with(function(dir)
      local model = Parts(offload(dir)):to 'bf16'
      local opt = optim.AdamW(model:named_parameters(), {})
      assert.same({ 'm', 'master', 'v' }, (opt.offloaded:slots 'c'))
      assert.same({ 'm', 'v' }, (opt.offloaded:slots 'e')) -- vectors stay f32
      assert.is_true(bits(model.c) == bits(opt.offloaded:read('c', 'master')))
      opt.offloaded:write('c', 'm', lumoe.full({ 2, 5, 700 }, 3))
      assert.equal(21000, opt.offloaded:read('c', 'm'):sum():item())
      assert.equal(0, opt.offloaded:read('a', 'm'):sum():item())
    end)
  end)

  it('of Adafactor is refused, with the reason', function()
    folder.with(function(dir)
      assert.error_matches(function() optim.Adafactor(Parts(offload(dir)):named_parameters()) end,
        "optim.Adafactor: means of rows and columns need whole matrices, but 'a' is offloaded; use AdamW or SGD")
    end)
  end)

  it('that finds no room says so at the start', function()
    assert.error_matches(function() optim.AdamW(Parts(offload '/none'):named_parameters()) end,
      'offload: cannot make a file in /none: No such file')
  end)

  it('leaves the windows alone until the tier is done with them, also after an error', function()
    folder.with(function(dir)
      local stream = Stream.new(Tier.open(dir), { m = 'f32' }, 1)
      local entry = stream:add(5000)
      stream:reserve()
      local before = lumoe.memory().live.total
      local ok, message = pcall(stream.update, stream, function() return true end, function(_, first)
        if first > 0 then error('stop here', 0) end
      end)
      assert.same({ false, 'stop here' }, { ok, message })
      assert.equal(before, lumoe.memory().live.total)
      assert.equal(5000, entry.count)
    end)
  end)
end)
