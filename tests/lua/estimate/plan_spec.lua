local lumoe = require 'lumoe'
local Translator = require 'recipes.translate.model'
local unit = require 'lumoe.estimate.unit'
local wires = require 'lumoe.estimate.wires'

local estimate = lumoe.estimate
local SMALL = { dim = 32, heads = 4, hidden = 48, vocab = 100, encoder_layers = 4, decoder_layers = 2, experts = 6 }
local BATCH = { sequences = 8, source = 10, target = 6 }

local function with(base, more)
  local t = {}
  for k, v in pairs(base) do t[k] = v end
  for k, v in pairs(more) do t[k] = v end
  return t
end

local function plan(model, mesh, more)
  return estimate(with({ model = with(SMALL, model or {}), mesh = mesh, batch = BATCH }, more or {}))
end

local function wire(p, name, group)
  for _, t in ipairs(p.wires) do
    if t.wire == name and (not group or t.group == group) then return t end
  end
end

describe('estimate', function()
  it('counts the parameters that the recipe\'s model has', function()
    for _, experts in ipairs { 1, 6 } do
      local model = Translator(with(SMALL, { experts = experts, top_k = 1, capacity = 0, noise = 0, balance = 0.01,
        dropout = 0.1, label_smoothing = 0, ep = 1, select = 'random' }))
      local p = plan { experts = experts }
      assert.equal(model:numel(), p.parameters.total)
      assert.equal(model:numel(), p.parameters.here)
    end
  end)

  it('counts as active what a token sees', function()
    local p = plan { top_k = 2 }
    local experts = 3 * 6 * 2 * 32 * 48 -- of layers 2 and 4, and 2
    assert.equal(experts, p.parameters.experts)
    assert.equal(p.parameters.total - experts * 4 / 6, p.parameters.active)
  end)

  it('spreads experts and columns, and what ZeRO shards', function()
    local alone = plan()
    local experts = alone.parameters.experts
    assert.equal(alone.parameters.total - experts * 2 / 3, plan(nil, { ranks = 4, ep = 3 + 1 }).parameters.here) -- 2, 1, 2, 1
    local both = plan(nil, { ranks = 4, ep = 2, etp = 2 }).parameters.here
    assert.equal(alone.parameters.total - experts * 3 / 4, both)
    local tp = plan({ experts = 1 }, { ranks = 2, tp = 2 })
    assert.is_true(tp.parameters.here > tp.parameters.total / 2 and tp.parameters.here < 0.55 * tp.parameters.total)
    local one = plan(nil, { ranks = 4, zero = { dense = 1, expert = 1 } })
    assert.near(one.parameters.total / 4, one.parameters.owned, 60)
    assert.equal(one.parameters.total, one.parameters.here)
  end)

  it('books memory by purpose', function()
    local big = { dim = 256, hidden = 1024, vocab = 1000 }
    local f32, bf16 = plan(big), plan(big, nil, { precision = 'bf16' })
    local n = f32.parameters.total
    assert.near(4 * n, f32.memory.peak.parameters, 0.01 * n)
    assert.near(8 * n, f32.memory.peak.optimizer, 0.01 * n)
    assert.near(2 * n, bf16.memory.peak.parameters, 0.02 * n)
    assert.near(4 * n, bf16.memory.peak.gradients, 0.02 * n)
    assert.near(12 * n, bf16.memory.peak.optimizer, 0.05 * n)
    local mesh = { ranks = 4, zero = { dense = 3, expert = 3 } }
    local three = plan(big, mesh, { precision = 'bf16' })
    assert.near(12 * n / 4, three.memory.peak.optimizer, 0.05 * n)
    assert.is_true(three.memory.peak.parameters < 0.6 * bf16.memory.peak.parameters)
    local away = plan(big, { ranks = 1, offload = 'parameters' }, { precision = 'bf16' })
    assert.equal(3 * (2 ^ 21 + 2 * 2 ^ 17), away.memory.peak.optimizer) -- three windows of a bucket and its parameters
    assert.near(18 * n, away.memory.tier.total, 0.05 * n)
    assert.is_true(plan(big, nil, { recompute = true }).memory.peak.activations < f32.memory.peak.activations)
  end)

  it('leaves out masters that there are not', function()
    local big = { dim = 256, hidden = 1024, vocab = 1000 }
    local n = plan(big).parameters.total
    for _, offload in ipairs { false, 'parameters' } do
      local mesh = { ranks = 1, offload = offload or nil }
      local masters = plan(big, mesh, { precision = 'bf16' })
      local without = plan(big, mesh, { precision = 'bf16', masters = false })
      local where = offload and 'tier' or 'peak'
      assert.near(4 * n, masters.memory[where].optimizer - without.memory[where].optimizer, 0.05 * n)
      assert.is_true(not offload or masters.tier.written - without.tier.written > 3.9 * n)
    end
    assert.equal(plan(big).memory.peak.total, plan(big, nil, { masters = false }).memory.peak.total) -- f32 has none
  end)

  it('halves bf16 moments, in memory, in the tier and on the way there', function()
    local big, on = { dim = 256, hidden = 1024, vocab = 1000 }, estimate.hardware['a100-40']
    local n = plan(big).parameters.total
    for _, precision in ipairs { 'f32', 'bf16' } do
      for _, offload in ipairs { false, 'optimizer', 'parameters' } do
        local mesh = { ranks = 1, offload = offload or nil }
        local wide = plan(big, mesh, { precision = precision, masters = false, hardware = on })
        local narrow = plan(big, mesh, { precision = precision, masters = false, hardware = on, moments = 'bf16' })
        local where = offload and 'tier' or 'peak'
        assert.near(4 * n, wide.memory[where].optimizer - narrow.memory[where].optimizer, 0.02 * n)
        for _, moved in ipairs { 'read', 'written' } do
          assert.near(offload and 4 * n or 0, wide.tier[moved] - narrow.tier[moved], 0.05 * n)
        end
        -- norm and update: gradient twice, m and v read and written, the parameter read and written
        local own = precision == 'f32' and 8 or 4
        assert.near((8 + 8 + own) / (8 + 16 + own), narrow.time.parts.update / wide.time.parts.update, 1e-9)
      end
    end
    local away = plan(big, { ranks = 1, offload = 'parameters' }, { precision = 'bf16', moments = 'bf16' })
    local each = math.floor(2 ^ 21 / 12 / 1024) * 1024 -- a gradient, a master, two moments
    assert.near(3 * 14 * each, away.memory.peak.optimizer, 3 * 5 * 4096)
    assert.error_matches(function() plan(big, nil, { moments = 'f16' }) end, "estimate: moments are f32 or bf16, not 'f16'")
  end)

  it('halves bf16 gradients of experts that nothing is added to', function()
    local moe, on = { dim = 256, hidden = 1024, vocab = 1000, experts = 8 }, estimate.hardware['a100-40']
    local function all_bf16(gradients, mesh, micro_batches)
      return plan(moe, mesh, { precision = 'bf16', masters = false, moments = 'bf16', hardware = on, gradients = gradients,
        batch = { sequences = 8, source = 16, target = 16, micro_batches = micro_batches } })
    end
    local wide, narrow = all_bf16('f32', { ranks = 1 }), all_bf16('bf16', { ranks = 1 })
    local n = wide.parameters.experts
    assert.is_true(n > 0.5 * wide.parameters.total)
    assert.near(2 * n, wide.memory.peak.gradients - narrow.memory.peak.gradients, 0.02 * n)
    assert.near(20 * wide.parameters.total - 4 * n, 20 * wide.parameters.total
      * narrow.time.parts.update / wide.time.parts.update, 0.05 * n) -- but for vectors, which stay f32
    local spread = { ranks = 4, ep = 4 }
    assert.is_true(all_bf16('bf16', spread).memory.peak.gradients < all_bf16('f32', spread).memory.peak.gradients)
    for _, case in ipairs { { { ranks = 4, ep = 2 } }, { { ranks = 4, ep = 2, zero = { expert = 2 } } },
      { { ranks = 1 }, 2 }, { { ranks = 1, offload = 'optimizer' } } } do
      assert.equal(all_bf16('f32', unpack(case)).memory.peak.total, all_bf16('bf16', unpack(case)).memory.peak.total)
    end
    assert.error_matches(function() all_bf16('f16') end, "estimate: gradients are f32 or bf16, not 'f16'")
  end)

  it('takes what parts reach of the roofline from the hardware', function()
    local on = with(estimate.hardware['a100-40'], { efficiency = 1 })
    local whole = plan(nil, nil, { hardware = on }).time
    local function reaching(part, share)
      local reach = {}
      for _, name in ipairs { 'dense', 'experts', 'loss', 'update' } do reach[name] = { products = 1, rest = 1 } end
      reach[part] = { products = share, rest = share }
      return plan(nil, nil, { hardware = with(on, { reach = { f32 = reach } }) }).time
    end
    for _, part in ipairs { 'dense', 'experts', 'loss' } do
      assert.is_true(reaching(part, 0.5).parts.compute > 1.02 * whole.parts.compute, part)
    end
    assert.near(2 * whole.parts.update, reaching('update', 0.5).parts.update, 1e-12)
  end)

  it('rounds as the allocator does', function()
    for bytes, size in pairs { [1] = 64, [64] = 64, [65] = 128, [600] = 640, [1024] = 1024, [1030] = 1152, [32768] = 32768,
      [32769] = 33792, [40960] = 40960 } do
      assert.equal(size, unit.block(bytes), bytes)
    end
    local C = require 'lumoe.ffi'
    for _, n in ipairs { 3, 17, 100, 1000, 5000, 8192, 8193, 123457 } do
      local before = C.lm_memory_live(-1)
      local t = lumoe.zeros(n)
      assert.equal(unit.block(4 * n), C.lm_memory_live(-1) - before)
      t:dispose()
    end
  end)

  it('sends exact rows: k · T · (1 - 1/R), four times a layer', function()
    local p = plan({ top_k = 2, capacity = 0 }, { ranks = 3, ep = 3 }, { batch = { sequences = 12, source = 10, target = 6 } })
    local rows = 2 * 4 * (2 * 10 + 1 * 6) -- top 2; 4 sequences a rank; 2 layers over the source, 1 over the target
    assert.near(4 * rows * (1 - 1 / 3) * 32 * 4, wire(p, 'all-to-all').bytes, 1e-6)
    assert.equal(4 * 3 * 2, wire(p, 'all-to-all').messages)
    local half = plan({ capacity = 0.5 }, { ranks = 2, ep = 2 })
    assert.equal(wire(plan({ capacity = 2 }, { ranks = 2, ep = 2 }), 'all-to-all').bytes, 2 * wire(half, 'all-to-all').bytes)
  end)

  it('sends a token to each place once: a third less at 64 experts, top 8, 8 ranks', function()
    local function moved(exchange)
      local p = plan({ experts = 64, top_k = 8, dim = 512, exchange = exchange }, { ranks = 8, ep = 8 })
      return wire(p, 'all-to-all').bytes
    end
    assert.near(0.68, moved 'once' / moved 'rows', 0.01)
  end)

  it('reduces gradients over their replicas alone', function()
    local p = plan({ dim = 256, hidden = 2048 }, { ranks = 4, ep = 2 })
    local expert = p.parameters.experts / 2
    assert.equal(2 * 4 * expert * (1 - 1 / 2), wire(p, 'gradients', 'replicas').bytes)
    assert.is_nil(wire(plan(nil, { ranks = 4, ep = 4 }), 'gradients', 'replicas'))
    assert.is_nil(wire(plan(), 'gradients'))
    assert.equal(0, plan().sent.bytes)
    local two = plan({ dim = 256, hidden = 2048 }, { ranks = 4, ep = 2, zero = { expert = 2 } })
    assert.equal(4 * expert * (1 - 1 / 2), wire(two, 'gradients', 'replicas').bytes)
  end)

  it('knows what collectives send', function()
    assert.same({ 30, 3 }, { wires.all_gather(10, 4) })
    assert.same({ 30, 3 }, { wires.all_reduce(10, 4) }) -- small: everyone gets everything
    assert.same({ 1.5 * 2 ^ 20, 6 }, { wires.all_reduce(2 ^ 20, 4) })
    assert.same({ 0, 0 }, { wires.all_reduce(2 ^ 20, 1) })
  end)

  it('finds the largest model under a limit', function()
    local function grown(n) return with(SMALL, { experts = 2 * n }) end
    local limit = 64 * 2 ^ 20
    local n, p = estimate.largest { model = grown, batch = BATCH, limit = limit, precision = 'bf16' }
    assert.is_true(n > 1 and p.memory.peak.total <= limit)
    assert.equal(2 * n, p.context.model.experts)
    assert.is_true(estimate { model = grown(n + 1), batch = BATCH, precision = 'bf16' }.memory.peak.total > limit)
    local away = estimate.largest { model = grown, batch = BATCH, limit = limit, precision = 'bf16', mesh = { offload = 'optimizer' } }
    assert.is_true(away > n)
    assert.equal(0, (estimate.largest { model = grown, batch = BATCH, limit = 1000 }))
  end)

  it('gives times for named machines, up to thousands of ranks and trillions of parameters', function()
    local model = { dim = 4096, heads = 32, hidden = 16384, vocab = 128000, encoder_layers = 24, decoder_layers = 12,
      experts = 1024, top_k = 2 }
    local mesh = { ranks = 2048, tp = 8, ep = 1024, zero = { dense = 3, expert = 1 } }
    for name in pairs(estimate.hardware) do
      local p = estimate { model = model, mesh = mesh, batch = { sequences = 4096, source = 512, target = 512 },
        precision = 'bf16', hardware = name }
      assert.is_true(p.parameters.total > 2e12)
      assert.is_true(p.time.total > 0 and p.time.overlapped <= p.time.total)
      assert.is_true(p.time.achieved_flops < p.hardware.flops.bf16)
    end
  end)

  it('names mistakes', function()
    for want, opts in pairs {
      ['estimate: tp = 3 does not divide 4 ranks'] = { mesh = { ranks = 4, tp = 3 } },
      ['estimate: ep · etp = 8 does not divide 4 ranks'] = { mesh = { ranks = 4, ep = 4, etp = 2 } },
      ["estimate: no hardware 'tpu'"] = { hardware = 'tpu' },
      ["unknown option 'layers'"] = { model = { layers = 3 } },
      ['estimate: model.top_k is 4, but there are 2 experts'] = { model = { experts = 2, top_k = 4 } },
      ['estimate: mesh.zero.dense is 4; there are 0 to 3'] = { mesh = { zero = { dense = 4 } } },
    } do
      local ok, message = pcall(estimate, opts)
      assert.is_false(ok)
      assert.truthy(message:find(want, 1, true), message)
    end
  end)
end)
