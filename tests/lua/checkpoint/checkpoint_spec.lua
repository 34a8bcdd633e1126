local lfs = require 'lfs'
local lumoe = require 'lumoe'
local checkpoint = require 'lumoe.checkpoint'
local folder = require 'tests.lua.checkpoint.folder'
local nn, optim = lumoe.nn, lumoe.optim

local MODEL_FILE = 'model-00001-of-00001.safetensors'

local Net = nn.class 'Net'
function Net:init(width)
  self.embedding = nn.Embedding { 11, 8 }
  self.layers = { nn.Linear { 8, width or 6 }, nn.LayerNorm { width or 6 } }
end
function Net:forward(ids) return self.layers[2](self.layers[1](self.embedding(ids))) end

local function net(dtype, width) return Net(width):initialize():to(dtype or 'f32') end

local KINDS = { AdamW = optim.AdamW, Adafactor = optim.Adafactor, SGD = function(p) return optim.SGD(p, { momentum = 0.9 }) end }
local function adamw(model) return optim.AdamW(model:named_parameters(), { lr = 0.01 }) end

-- Trains from step `from` to `to` on data that depend on the step alone; returns the losses.
local function train(model, optimizer, from, to)
  local losses = {}
  for step = from, to do
    lumoe.scope(function()
      require('lumoe.random').step(step)
      local ids = (lumoe.rand(16, { site = 'ids' }) * 11):long()
      local y = model(ids):float() + lumoe.randn(16, 6, { site = 'noise' })
      local loss = (y * y):mean() + y:abs():sum() * 0.01
      loss:backward()
      optimizer:step()
      optimizer:zero_grad()
      losses[#losses + 1] = loss:item()
    end)
  end
  return losses
end

local function files(dir)
  local list = {}
  for entry in lfs.dir(dir) do
    if entry ~= '.' and entry ~= '..' then list[#list + 1] = entry end
  end
  table.sort(list)
  return list
end

local function values(tensors)
  local out = {}
  for name, t in pairs(tensors) do out[name] = t:totable() end
  return out
end

-- The message of an error, without luassert's cutting of the place.
local function message_of(f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok, 'no error')
  return message
end

describe('a run that is saved and loaded', function()
  for kind, make in pairs(KINDS) do
    for _, dtype in ipairs { 'f32', 'bf16' } do
      it(('goes on with the same losses: %s, %s'):format(kind, dtype), function()
        folder.with(function(dir)
          lumoe.manual_seed(5)
          local model = net(dtype)
          local optimizer = make(model:named_parameters())
          train(model, optimizer, 1, 3)
          local path = checkpoint.save(dir, { model = model, optimizer = optimizer, step = 3 })
          local unbroken = train(model, optimizer, 4, 8)

          lumoe.manual_seed(6)
          local other = net(dtype)
          local again = make(other:named_parameters())
          local saved = checkpoint.load(path, { model = other, optimizer = again })
          assert.same({ 3, 'loaded', { seed = 5, step = 3 } }, { saved.step, saved.optimizer, saved.random })
          assert.same(unbroken, train(other, again, 4, 8))
          assert.same(values(model:state()), values(other:state()))
        end)
      end)
    end
  end

  it('gets back what was put in extra, to the last bit', function()
    folder.with(function(dir)
      local extra = { position = 2 ^ 53 - 1, pi = math.pi, tiny = 5e-324, list = { 1, 'two', { three = true } }, no = false,
        empty = {}, text = 'Grüße\n"\\\0', langs = { de = 1, ['zh-TW'] = 2 } }
      local path = checkpoint.save(dir .. '/made/on/the/way', { model = net(), step = 0, extra = extra, best = -1.5 })
      local saved = checkpoint.load(path)
      assert.same(extra, saved.extra)
      assert.equal(-1.5, saved.score)
      assert.equal(0, saved.step)
    end)
  end)

  it('need not have an optimizer', function()
    folder.with(function(dir)
      local model = net()
      local path = checkpoint.save(dir, { model = model, step = 1 })
      local other = net('bf16')
      local optimizer = adamw(other)
      optimizer.state['layers.1.weight'].m:fill_(3)
      optimizer.steps = 9
      assert.equal('fresh', checkpoint.load(path, { model = other, optimizer = optimizer }).optimizer)
      assert.equal(0, optimizer.steps)
      assert.equal(0, optimizer.state['layers.1.weight'].m:abs():max():item())
      assert.same(model.layers[1].weight:totable(), optimizer.state['layers.1.weight'].master:totable())
    end)
  end)

  it('has its buffers back, also in state', function()
    folder.with(function(dir)
      local model, other = net(), net()
      nn.buffer(model.layers[1], 'bias_of_routes', lumoe.tensor { 1, 2 })
      nn.buffer(other.layers[1], 'bias_of_routes', lumoe.zeros(2))
      local optimizer = adamw(model)
      checkpoint.load(checkpoint.save(dir, { model = model, optimizer = optimizer, step = 1 }), { model = other, optimizer = adamw(other) })
      assert.same({ 1, 2 }, other.layers[1].bias_of_routes:totable())
      other.layers[1].bias_of_routes:zero_()
      other:load_state(model:state())
      assert.same({ 1, 2 }, other.layers[1].bias_of_routes:totable())
      assert.matches('layers.1.bias_of_routes is not in the model', message_of(checkpoint.load, checkpoint.latest(dir), { model = net() }))
    end)
  end)

  it('leaves the random state alone when only the model is loaded', function()
    folder.with(function(dir)
      lumoe.manual_seed(5)
      local path = checkpoint.save(dir, { model = net(), step = 1 })
      lumoe.manual_seed(77)
      assert.equal(5, checkpoint.load(path, { model = net() }).random.seed)
      local a = lumoe.randn(3):totable()
      lumoe.manual_seed(77)
      assert.same(lumoe.randn(3):totable(), a)
    end)
  end)
end)

describe('another dtype', function()
  it('f32 into bf16: rounded weights, masters with every bit', function()
    folder.with(function(dir)
      local wide, narrow = net(), net('bf16')
      local path = checkpoint.save(dir, { model = wide, optimizer = adamw(wide), step = 1 })
      local optimizer = adamw(narrow)
      checkpoint.load(path, { model = narrow, optimizer = optimizer })
      assert.same(wide.layers[1].weight:totable(), optimizer.state['layers.1.weight'].master:totable())
      assert.same(wide.layers[1].weight:bfloat16():totable(), narrow.layers[1].weight:totable())
      assert.equal('bf16', narrow.layers[1].weight.dtype)
    end)
  end)

  it('bf16 into f32: the masters when training goes on, the weights when not', function()
    folder.with(function(dir)
      local narrow, wide = net('bf16'), net()
      local optimizer = adamw(narrow)
      train(narrow, optimizer, 1, 2)
      local path = checkpoint.save(dir, { model = narrow, optimizer = optimizer, step = 2 })
      checkpoint.load(path, { model = wide })
      assert.same(narrow.layers[1].weight:totable(), wide.layers[1].weight:totable())
      checkpoint.load(path, { model = wide, optimizer = adamw(wide) })
      assert.same(optimizer.state['layers.1.weight'].master:totable(), wide.layers[1].weight:totable())
      assert.is_true(wide.layers[1].weight.requires_grad and wide.layers[1].weight.is_leaf)
    end)
  end)
end)

describe('a bare file', function()
  it('is loaded into a model, and a checkpoint is read without one', function()
    folder.with(function(dir)
      local a, b = net(), net()
      a.layers[1].weight:detach():fill_(4)
      checkpoint.write(dir .. '/a.safetensors', a:state())
      local saved = checkpoint.load(dir .. '/a.safetensors', { model = b })
      assert.same({ extra = {} }, saved)
      assert.same(values(a:state()), values(b:state()))
      local path = checkpoint.save(dir, { model = a, optimizer = adamw(a), step = 3 })
      assert.same(values(a:state()), values((checkpoint.read(path))))
      b:load_state(checkpoint.read(path .. '/model-00001-of-00001.safetensors'))
    end)
  end)
end)

describe('a folder of checkpoints', function()
  it('keeps the newest and the best', function()
    folder.with(function(dir)
      assert.same({ dir .. ': there is no checkpoint' }, { select(2, checkpoint.latest(dir)) })
      assert.is_nil((checkpoint.latest(dir .. '/none')))
      assert.is_nil((checkpoint.best(dir)))
      local model, scores = net(), { 1, 5, 2, 5, 3, 4 }
      for i, score in ipairs(scores) do
        checkpoint.save(dir, { model = model, step = i * 100, best = score, keep = 2 })
      end
      assert.same({ 'checkpoint-400', 'checkpoint-500', 'checkpoint-600' }, files(dir))
      assert.same({ dir .. '/checkpoint-600', 600 }, { checkpoint.latest(dir) })
      assert.same({ dir .. '/checkpoint-400', 5, 400 }, { checkpoint.best(dir) })
      checkpoint.save(dir, { model = model, step = 1000, keep = 1 })
      assert.same({ 'checkpoint-1000', 'checkpoint-400' }, files(dir))
      checkpoint.save(dir, { model = model, step = 50, keep = 1 }) -- the run went back
      assert.same({ 'checkpoint-1000', 'checkpoint-400', 'checkpoint-50' }, files(dir))
    end)
  end)

  it('replaces one of the same step, clears what a killed run left, touches nothing else', function()
    folder.with(function(dir)
      local model = net()
      checkpoint.save(dir, { model = model, step = 1, extra = { n = 1 } })
      lfs.mkdir(dir .. '/checkpoint-7.part')
      folder.write(dir .. '/checkpoint-7.part/index.json', '{')
      lfs.mkdir(dir .. '/checkpoint-9') -- without an index: not one of ours
      folder.write(dir .. '/notes.part', 'mine')
      assert.same({ dir .. '/checkpoint-1', 1 }, { checkpoint.latest(dir) })
      checkpoint.save(dir, { model = model, step = 1, extra = { n = 2 }, keep = 1 })
      assert.equal(2, checkpoint.load(dir .. '/checkpoint-1').extra.n)
      assert.same({ 'checkpoint-1', 'checkpoint-9', 'notes.part' }, files(dir))
    end)
  end)

  it('has back a checkpoint that a killed exchange of names put aside', function()
    folder.with(function(dir)
      local model = net()
      checkpoint.save(dir, { model = model, step = 1 })
      assert(os.rename(dir .. '/checkpoint-1', dir .. '/checkpoint-1.old'))
      checkpoint.save(dir, { model = model, step = 2 })
      assert.same({ 'checkpoint-1', 'checkpoint-2' }, files(dir))
    end)
  end)
end)

describe('load refuses', function()
  it('a model that does not fit, naming all that is wrong, and leaves it as it was', function()
    folder.with(function(dir)
      local path = checkpoint.save(dir, { model = net(), step = 1 })
      local other = net('f32', 7)
      other.extra, other.embedding = nn.Linear { 2, 2, bias = false }, nil
      local before = values(other:state())
      local message = message_of(checkpoint.load, path, { model = other })
      assert.truthy(message:find('checkpoint_spec.lua', 1, true), message)
      local wanted = {
        ('checkpoint.load: %s does not fit: embedding.weight is not in the model'):format(path), 'extra.weight is missing',
        'layers.1.bias is [6], the model wants [7]', 'layers.1.weight is [6, 8], the model wants [7, 8]',
      }
      assert.truthy(message:find(table.concat(wanted, '; '), 1, true), message)
      assert.same(before, values(other:state()))
    end)
  end)

  it('many faults, listed in part', function()
    folder.with(function(dir)
      local many = {}
      for i = 1, 20 do many['t' .. i] = lumoe.zeros(1) end
      checkpoint.write(dir .. '/x', many)
      assert.matches('t11 is not in the model; and 17 more', message_of(checkpoint.load, dir .. '/x', { model = net() }))
    end)
  end)

  it('another kind of optimizer, or one of other parameters', function()
    folder.with(function(dir)
      local model = net()
      local path = checkpoint.save(dir, { model = model, optimizer = adamw(model), step = 1 })
      assert.matches('holds the state of AdamW, not of SGD',
        message_of(checkpoint.load, path, { model = model, optimizer = KINDS.SGD(model:named_parameters()) }))
      local some = optim.AdamW(model.layers[1]:named_parameters(), {})
      assert.matches('optimizer.bias.m is missing', message_of(checkpoint.load, path, { optimizer = some }))
    end)
  end)

  it('what is no checkpoint, and unknown options', function()
    folder.with(function(dir)
      assert.matches('it is no checkpoint', message_of(checkpoint.load, dir, { model = net() }))
      assert.matches('/none: No such file', message_of(checkpoint.load, dir .. '/none', { model = net() }))
      assert.matches("no option 'modle'", message_of(checkpoint.load, dir, { modle = net() }))
      assert.matches('wants a path, not a nil', message_of(checkpoint.load, nil))
    end)
  end)

  -- Each case damages a sound checkpoint; the message names the file, and the model stays as it was.
  local MODEL, OPTIMIZER = MODEL_FILE, 'optimizer-00001-of-00001.safetensors'
  local function replace(name, from, to)
    return function(path)
      local text = folder.read(path .. name)
      local at, past = text:find(from, 1, true)
      assert(at, from)
      folder.write(path .. name, text:sub(1, at - 1) .. to .. text:sub(past + 1))
    end
  end
  local cases = {
    { 'a truncated file', MODEL, 'is cut off', function(path) folder.write(path .. MODEL, folder.read(path .. MODEL):sub(1, -5)) end },
    { 'a missing file', OPTIMIZER, 'No such file', function(path) os.remove(path .. OPTIMIZER) end },
    { 'a folder for a file', MODEL, 'is a directory, not a file', function(path)
      os.remove(path .. MODEL)
      lfs.mkdir(path .. MODEL)
    end },
    { 'one flipped bit', OPTIMIZER, "tensor 'optimizer.layers.2.weight.v' is corrupt: its checksum", function(path)
      local text = folder.read(path .. OPTIMIZER)
      folder.write(path .. OPTIMIZER, text:sub(1, -2) .. string.char(bit.bxor(text:byte(-1), 16)))
    end },
    { 'a flipped dtype', MODEL, "is [11, 8] i32, but ", replace(MODEL, 'F32', 'I32') },
    { 'a shape with the same bytes', MODEL, 'is [8, 11] f32, but ', replace(MODEL, '[11,8]', '[8,11]') },
    { 'another name', MODEL, "has no tensor 'embedding.weight', which ", replace(MODEL, 'embedding.weight', 'embedding.wolght') },
    { 'an index cut off', 'index.json', 'is corrupt', function(path)
      folder.write(path .. 'index.json', folder.read(path .. 'index.json'):sub(1, 900))
    end },
    { 'an index of nothing', 'index.json', 'has no weight_map', function(path) folder.write(path .. 'index.json', '{}') end },
    { 'an empty index', 'index.json', 'is corrupt', function(path) folder.write(path .. 'index.json', '') end },
    { 'an index of a later version', 'index.json', 'is of version 3', replace('index.json', '"version": 2', '"version": 3') },
    { 'an index without its step', 'index.json', 'something of step', replace('index.json', '"step": 4', '"stop": 4') },
    { 'a tensor without pieces', 'index.json', "tensor 'embedding.weight' has no dtype, shape and pieces",
      function(path)
        local text = folder.read(path .. 'index.json')
        local at = text:find('"parameters"', 1, true)
        folder.write(path .. 'index.json', text:sub(1, at) .. text:sub(at + 1):gsub('"pieces"', '"pisces"', 1))
      end },
  }
  for _, case in ipairs(cases) do
    it(case[1], function()
      folder.with(function(dir)
        local model = net()
        local path = checkpoint.save(dir, { model = model, optimizer = adamw(model), step = 4 })
        case[4](path .. '/')
        local other = net()
        local optimizer = adamw(other)
        for _, t in pairs(other:state()) do t:detach():fill_(3) end
        local message = message_of(checkpoint.load, path, { model = other, optimizer = optimizer })
        assert.truthy(message:find(path .. '/' .. case[2] .. ': ', 1, true), message)
        assert.truthy(message:find(case[3], 1, true), message)
        for _, t in pairs(other:state()) do
          assert.same({ 3, 3 }, { t:min():item(), t:max():item() })
        end
        if case[2] ~= 'index.json' then assert.equal(4, checkpoint.load(path).step) end -- reads the index alone
      end)
    end)
  end
end)

describe('save refuses', function()
  it('bad options, at the line of the caller', function()
    folder.with(function(dir)
      local model = net()
      local function message(opts)
        opts.model = opts.model or model
        return message_of(checkpoint.save, dir, opts)
      end
      assert.matches("option 'step' %(a number%) is missing", message {})
      assert.matches("option 'step' must be a whole number from 0, not 1.5", message { step = 1.5 })
      assert.matches("option 'step' must be a whole number from 0, not nan", message { step = 0 / 0 })
      assert.matches("option 'keep' must be a whole number from 1, not 0", message { step = 1, keep = 0 })
      assert.matches("option 'best' is not a number", message { step = 1, best = 0 / 0 })
      assert.matches("checkpoint.save: no option 'score'", message { step = 1, score = 2 })
      assert.matches('extra.f is a function', message { step = 1, extra = { f = print } })
      assert.matches('extra.a is nan', message { step = 1, extra = { a = 0 / 0 } })
      assert.matches('extra.a is a list with holes', message { step = 1, extra = { a = { 1, nil, 3 } } })
      assert.matches('extra.a has both names and positions', message { step = 1, extra = { a = { 1, b = 2 } } })
      assert.matches('extra.t is a cdata', message { step = 1, extra = { t = lumoe.zeros(1) } })
      local loop = {}
      loop.loop = loop
      assert.matches('is nested too deep', message { step = 1, extra = loop })
      assert.same({}, files(dir))
    end)
  end)

  it('a full disk, leaving the checkpoint before it', function()
    folder.with(function(dir)
      local model = net()
      local path = checkpoint.save(dir, { model = model, step = 1 })
      folder.write(dir .. '/save.lua', [[
        local lumoe = require 'lumoe'
        lumoe.checkpoint.save(arg[1], { model = lumoe.nn.Linear { 512, 512 }, step = 2, keep = 1 })
      ]])
      -- A limit on the size of files stands for the end of the disk: 256 KiB, of the 1 MiB wanted.
      local output, code = folder.lumoe(dir .. '/save.lua ' .. dir, "trap '' XFSZ; ulimit -f 512;")
      assert.equal(1, code)
      assert.matches('save.lua:2: checkpoint.save: .*checkpoint%-2.part/' .. MODEL_FILE:gsub('%-', '%%-')
        .. ': cannot write: File too large', output)
      assert.same({ 'checkpoint-1', 'save.lua' }, files(dir))
      assert.equal(1, checkpoint.load(path, { model = model }).step)
    end)
  end)

  it('whatever call of the system fails, with a whole checkpoint left', function()
    local file = require 'lumoe.checkpoint.file'
    local File = debug.getmetatable(file.create '/dev/null').__index
    local calls, failing
    -- Makes the failing-th of these calls fail, half done where it can be.
    local originals = { create = file.create, replace = file.replace, sync_dir = file.sync_dir, write = File.write, commit = File.commit }
    local function fault(owner, name)
      owner[name] = function(...)
        calls = calls + 1
        if calls == failing then error(name .. ' failed here', 0) end
        return originals[name](...)
      end
    end
    finally(function()
      for _, name in ipairs { 'create', 'replace', 'sync_dir' } do file[name] = originals[name] end
      File.write, File.commit = originals.write, originals.commit
    end)
    folder.with(function(dir)
      local model = net()
      local optimizer = adamw(model)
      checkpoint.save(dir, { model = model, optimizer = optimizer, step = 1, extra = { step = 1 } })
      for _, name in ipairs { 'create', 'replace', 'sync_dir' } do fault(file, name) end
      for _, name in ipairs { 'write', 'commit' } do fault(File, name) end
      local step, failures = 2, 0
      repeat
        calls, failing = 0, failures + 1
        local ok, message = pcall(checkpoint.save, dir, { model = model, optimizer = optimizer, step = step, extra = { step = step },
          keep = 1 })
        if not ok then
          failures = failures + 1
          assert.matches('failed here', message)
        end
        failing = nil
        local path, latest = checkpoint.latest(dir)
        assert.is_true(latest == step or latest == step - 1)
        assert.equal(latest, checkpoint.load(path, { model = model, optimizer = optimizer }).extra.step)
        if latest == step then step = step + 1 end
      until ok
      assert.is_true(failures > 15, failures)
      for _, name in ipairs(files(dir)) do assert.is_nil(name:match '%.part$') end
    end)
  end)

  it('a file where the folder should be', function()
    folder.with(function(dir)
      folder.write(dir .. '/file', 'x')
      assert.matches('/file', message_of(checkpoint.save, dir .. '/file', { model = net(), step = 1 }))
      folder.write(dir .. '/checkpoint-3', 'x')
      assert.matches('checkpoint%-3: cannot take the name', message_of(checkpoint.save, dir, { model = net(), step = 3 }))
      assert.same({ 'checkpoint-3', 'file' }, files(dir))
    end)
  end)
end)
