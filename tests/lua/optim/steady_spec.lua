local vmdef = require 'jit.vmdef'
local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'
local nn, moe, optim, dist = lumoe.nn, lumoe.moe, lumoe.optim, lumoe.dist

local DIM, WORDS, TOKENS = 32, 100, 32

local Model = nn.class 'Model'
function Model:init()
  self.embedding, self.norm, self.head = nn.Embedding { WORDS, DIM }, nn.LayerNorm { DIM }, nn.Linear { DIM, WORDS }
  self.layer = nn.TransformerEncoderLayer { dim = DIM, heads = 2, dropout = 0.1, rope = true, feed_forward = moe.Layer {
    dim = DIM, experts = moe.FFN { experts = 4, hidden = 64 }, router = moe.routers.top_k { dim = DIM, top_k = 2 },
    capacity = { factor = 1.25, select = 'random' }, balance = { moe.balance.load(0.01) } } }
end
function Model:forward(ids)
  local x, aux = self.layer(self.embedding(ids))
  return self.head(self.norm(x)), aux
end

describe('a step like the ones before it', function()
  local step

  before_each(function()
    lumoe.manual_seed(1)
    local model, done = Model(), 0
    model:train()
    local optimizer = optim.AdamW(model:named_parameters(), {})
    local ids, targets = (lumoe.rand(4, TOKENS / 4) * WORDS):long(), (lumoe.rand(TOKENS) * WORDS):long()
    step = function()
      done = done + 1
      require('lumoe.random').step(done)
      lumoe.scope(function()
        local y, aux = model(ids)
        local loss = y:reshape(TOKENS, WORDS):cross_entropy(targets)
        if aux then loss = loss + aux end
        loss:backward { last = true }
      end)
      optimizer:step { grad_scale = optim.clip_scale(dist.grad_norm(model), 1) }
      optimizer:zero_grad()
    end
    for _ = 1, 100 do step() end -- traces are made, the pool is filled
  end)

  after_each(function() collectgarbage 'restart' end)

  it('leaves little to the collector of Lua, and no objects in C', function()
    local STEPS = 50
    collectgarbage()
    collectgarbage()
    collectgarbage 'stop'
    local before, objects = collectgarbage 'count', C.lm_memory_objects()
    for _ = 1, STEPS do step() end
    local each = (collectgarbage 'count' - before) / STEPS
    assert.is_true(each < 24, ('%.1f KB a step'):format(each)) -- 15 with one layer
    assert.equal(objects, C.lm_memory_objects())
  end)

  -- Where LuaJIT stops a trace it goes on slowly, and tries again. Some of it is how it finds the loops that are worth it,
  -- and becomes rare; what it cannot compile at all it would try in every place that leads there.
  it('is compiled', function()
    if not jit.status() then return pending 'without LuaJIT\'s compiler' end
    local STEPS = 100
    local all, never = 0, {}
    local function heard(what, _, func, pc, code, about)
      if what ~= 'abort' then return end
      local at = require('jit.util').funcinfo(func, pc)
      if not (at.source or ''):find('/lua/lumoe/', 1, true) then return end
      local why = type(code) == 'number' and vmdef.traceerr[code]:format(tostring(about)) or tostring(code)
      all = all + 1
      if why:find 'NYI' or why:find 'bad argument' then never[#never + 1] = at.loc .. ': ' .. why end
    end
    for _ = 1, 300 do step() end
    jit.attach(heard, 'trace')
    for _ = 1, STEPS do step() end
    jit.attach(heard)
    assert.equal('', table.concat(never, '\n'))
    assert.is_true(all < STEPS / 5, ('%d traces stopped in %d steps'):format(all, STEPS)) -- 5 or so
  end)

  it('asks the system for no memory', function()
    local function held()
      collectgarbage() -- plans of the layer, which Lua owns, go back
      collectgarbage()
      local memory = lumoe.memory()
      return memory.live.total + memory.pooled
    end
    for _ = 1, 5 do step() held() end
    local before = held()
    for _ = 1, 20 do
      step()
      assert.equal(before, held())
    end
  end)
end)
