local lumoe = require 'lumoe'
local search = require 'recipes.translate.search'
local Translator = require 'recipes.translate.model'

local V, EOS, START, PAD = 6, 2, 1, 0

local function translator(opts)
  lumoe.manual_seed(opts.seed or 3)
  local model = Translator {
    vocab = opts.vocab or V, dim = 16, heads = 2, hidden = 24, encoder_layers = 2, decoder_layers = 2, dropout = 0,
    experts = opts.experts or 4, top_k = 2, capacity = 1, noise = 0, balance = 0.01, ep = 1,
  }
  model:initialize()
  -- Opinions, where a fresh model has none but to say the last piece again.
  lumoe.no_grad(function()
    model.embedding.weight:copy_(model.embedding.weight * (opts.sharp or 3))
    model.decoder_norm.weight:copy_(lumoe.randn(16) * 1.5)
  end)
  return model:eval()
end

-- Sentences of different lengths, so that there is padding.
local SOURCES = { { 3, 4, 5, 2 }, { 5, 2 }, { 4, 4, 3, 5, 3, 2 } }

local function batch_of(sources)
  local longest, ids = 0, {}
  for _, s in ipairs(sources) do longest = math.max(longest, #s) end
  for i, s in ipairs(sources) do
    ids[i] = {}
    for t = 1, longest do ids[i][t] = s[t] or PAD end
  end
  local src = lumoe.tensor(ids, { dtype = 'i32' })
  return { src = src, src_tags = { valid = src:ne(PAD) }, start = lumoe.full({ #sources }, START, { dtype = 'i32' }) }
end

-- log p of every next piece after `prefix`, without a cache, one sentence at a time.
local function scorer(model, source)
  local batch = batch_of { source }
  local memory = model:encode(batch.src, batch.src_tags)
  local known = {}
  return function(prefix)
    local key = table.concat(prefix, ' ')
    if not known[key] then
      local x = model:decode(lumoe.tensor({ { START, unpack(prefix) } }, { dtype = 'i32' }), nil, memory,
        batch.src_tags.valid)
      known[key] = model:logits(x):log_softmax(-1):select(0, 0):select(0, #prefix):totable()
    end
    return known[key]
  end
end

local function greedy(next_log_p, max_len)
  local prefix = {}
  while #prefix < max_len do
    local best, p = 1, next_log_p(prefix)
    for id = 2, #p do if p[id] > p[best] then best = id end end
    if best - 1 == EOS then break end
    prefix[#prefix + 1] = best - 1
  end
  return prefix
end

-- The best of all sequences that end within max_len pieces, by sum(log p) / ((5 + n) / 6) ^ alpha.
local function exhaustive(next_log_p, max_len, alpha)
  local best, best_score
  local function visit(prefix, score)
    local p = next_log_p(prefix)
    local ended = (score + p[EOS + 1]) / ((5 + #prefix + 1) / 6) ^ alpha
    if not best or ended > best_score then best, best_score = { unpack(prefix) }, ended end
    if #prefix + 1 >= max_len then return end
    for id = 0, #p - 1 do
      if id ~= EOS then
        prefix[#prefix + 1] = id
        visit(prefix, score + p[id + 1])
        prefix[#prefix] = nil
      end
    end
  end
  visit({}, 0)
  return best, best_score
end

local function without_gradients(f) return function() lumoe.no_grad(f) end end

describe('beam search', function()
  for _, experts in ipairs { 4, 1 } do
    it(('with one beam takes the likeliest piece, again and again (%d experts)'):format(experts),
      without_gradients(function()
        local lengths = {}
        for seed = 1, 6 do
          local model = translator { experts = experts, seed = seed }
          local got = search.beam(model, batch_of(SOURCES), { beam = 1, eos = EOS, max_len = 12 })
          for i, source in ipairs(SOURCES) do
            local want = greedy(scorer(model, source), 12)
            assert.same(want, got[i], ('seed %d, sentence %d'):format(seed, i))
            lengths[#want] = true
          end
        end
        local kinds = 0
        for _ in pairs(lengths) do kinds = kinds + 1 end
        assert.is_true(kinds >= 3) -- or the test would prove little
      end))
  end

  it('wide enough, finds the best of all sequences', without_gradients(function()
    local found = {}
    for seed = 1, 8 do
      local model = translator { seed = seed, vocab = 4, sharp = 2 }
      local sources = { { 3, 3, 2 }, { 3, 2 } }
      local got = search.beam(model, batch_of(sources), { beam = 27, eos = EOS, max_len = 4, alpha = 0 })
      for i, source in ipairs(sources) do
        local want = exhaustive(scorer(model, source), 4, 0)
        assert.same(want, got[i], ('seed %d, sentence %d'):format(seed, i))
        found[#want] = true
      end
    end
    assert.is_true(found[0] ~= nil and (found[1] or found[2] or found[3]) ~= nil)
  end))

  it('with more beams finds likelier translations', without_gradients(function()
    local better, worse = 0, 0
    for seed = 1, 24 do
      local model = translator { seed = seed, sharp = 1.5 }
      local one = search.beam(model, batch_of(SOURCES), { beam = 1, eos = EOS, max_len = 8, alpha = 0 })
      local many = search.beam(model, batch_of(SOURCES), { beam = 8, eos = EOS, max_len = 8, alpha = 0 })
      for i, source in ipairs(SOURCES) do
        local next_log_p = scorer(model, source)
        local function worth(ids)
          local sum, prefix = 0, {}
          for _, id in ipairs(ids) do
            sum = sum + next_log_p(prefix)[id + 1]
            prefix[#prefix + 1] = id
          end
          return sum + next_log_p(prefix)[EOS + 1]
        end
        if #one[i] < 8 then -- else it did not end, and is worth nothing
          local gain = worth(many[i]) - worth(one[i])
          if gain > 1e-4 then better = better + 1 elseif gain < -1e-4 then worse = worse + 1 end
        end
      end
    end
    assert.equal(0, worse)
    assert.is_true(better >= 3)
  end))

  it('translates a sentence as it does among others', without_gradients(function()
    local model = translator { seed = 5 }
    local together = search.beam(model, batch_of(SOURCES), { beam = 4, eos = EOS, max_len = 10 })
    for i, source in ipairs(SOURCES) do
      assert.same(search.beam(model, batch_of { source }, { beam = 4, eos = EOS, max_len = 10 })[1], together[i])
    end
  end))

  it('prefers longer translations with a larger alpha', without_gradients(function()
    local pieces = {}
    for _, alpha in ipairs { 0, 2 } do
      pieces[alpha] = 0
      for seed = 1, 6 do
        local model = translator { seed = seed, sharp = 2 }
        for _, ids in ipairs(search.beam(model, batch_of(SOURCES), { beam = 4, eos = EOS, max_len = 10, alpha = alpha })) do
          pieces[alpha] = pieces[alpha] + #ids
        end
      end
    end
    assert.is_true(pieces[2] > pieces[0])
  end))

  it('tells experts which language a position is in, and ends at max_len', without_gradients(function()
    local model, seen = translator { seed = 1 }, {}
    local got = search.beam(model, batch_of(SOURCES), { beam = 2, eos = 99, max_len = 5, tags = function(rows, position)
      seen[#seen + 1] = { rows, position }
      return { language = lumoe.zeros({ rows, 1 }, { dtype = 'i32' }) }
    end })
    assert.same({ { 6, 0 }, { 6, 1 }, { 6, 2 }, { 6, 3 }, { 6, 4 } }, seen)
    for _, ids in ipairs(got) do assert.equal(5, #ids) end
    local by = model:moe_layers()[1].layer:stats().by.language
    assert.is_truthy(by and by[0])
  end))

  it('lets sentences go when they are done, and takes a batch without any', without_gradients(function()
    local model, rows = translator { seed = 5 }, {}
    local got = search.beam(model, batch_of(SOURCES), { beam = 2, eos = 99, tags = function(n)
      rows[#rows + 1] = n
      return {}
    end })
    for i, length in ipairs { 16, 13, 19 } do assert.equal(length, #got[i]) end -- 1.5 times the source, and 10
    for position = 1, 19 do assert.equal(position <= 13 and 6 or position <= 16 and 4 or 2, rows[position]) end
    assert.equal(19, #rows)
    local none = { src = lumoe.zeros({ 0, 1 }, { dtype = 'i32' }), start = lumoe.zeros({ 0 }, { dtype = 'i32' }),
      src_tags = { valid = lumoe.zeros({ 0, 1 }, { dtype = 'u8' }) } }
    assert.same({}, search.beam(model, none, { beam = 2, eos = EOS }))
  end))
end)
