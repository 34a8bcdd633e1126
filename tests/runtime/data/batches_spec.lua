-- Batches over streams whose ids tell their sentence: piece k of sentence i of stream s is unlike all others.
local ffi = require 'ffi'
local lfs = require 'lfs'
local batches = require 'lumoe.data.batches'
local make_stream = require 'tests.runtime.data.make_stream'

local dir = os.tmpname()
os.remove(dir)
lfs.mkdir(dir)
teardown(function() os.execute('rm -r ' .. dir) end)

local PIECES = { ['<2en>'] = 4, ['<2de>'] = 5, ['<2fr>'] = 6, ['<mask>'] = 7 }
local PAD, BOS, EOS, MASK = 0, 2, 3, 7
local FIRST, VOCAB = 16, 200000
local tok = {
  path = 'fake.model', hash = '000000000000004d', pad = PAD, bos = BOS, eos = EOS,
  id = function(_, piece) return PIECES[piece] end,
}

-- Lengths 1 to 30, uneven, different on the two sides.
local function lengths(i, side) return 1 + (i * 17 + math.floor(i / 7) * 11 + side * 5) % 30 end

-- The id that starts sentence i (counted from 0) of a stream; the others of the sentence follow it.
local function first_id(base, i) return FIRST + base + i * 40 end

local function sentences(count, base, side, change)
  local out = {}
  for i = 0, count - 1 do
    local ids, n = {}, lengths(i, side)
    if change and change[i] then n = change[i] end
    for k = 1, n do ids[k] = first_id(base, i) + k - 1 end
    out[i + 1] = ids
  end
  return out
end

local function pair(name, count, change)
  local source = make_stream(dir .. '/' .. name .. '.src', sentences(count, 0, 1, change), { vocab = VOCAB })
  local target = make_stream(dir .. '/' .. name .. '.tgt', sentences(count, 20, 2), { vocab = VOCAB })
  return source, target
end

local de, en_de = pair('de', 700)
local fr, en_fr = pair('fr', 300)

local function options(changes)
  local opts = {
    tokenizer = tok, languages = { 'en', 'de', 'fr' }, tokens = 900, window = 12, seed = 5,
    tasks = {
      { source = de, target = en_de, from = 'de', to = 'en' },
      { source = fr, target = en_fr, from = 'fr', to = 'en' },
      { source = en_de, from = 'en', to = 'en', kind = 'denoising' },
    },
  }
  for key, value in pairs(changes or {}) do opts[key] = value end
  return opts
end

-- The rows of a batch without padding, as Lua tables; checks on the way that all around them is padding.
local function rows_of(batch)
  local function cut(data, row, width, length)
    local ids = {}
    for k = 0, width - 1 do
      local id = data[row * width + k]
      if k < length then
        assert(id ~= PAD)
        ids[k + 1] = id
      else
        assert(id == PAD)
      end
    end
    return ids
  end
  local rows = {}
  for i = 0, batch.rows - 1 do
    rows[i + 1] = {
      src = cut(batch.src, i, batch.src_len, batch.src_lens[i]),
      tgt_in = cut(batch.tgt_in, i, batch.tgt_len, batch.tgt_lens[i]),
      tgt_out = cut(batch.tgt_out, i, batch.tgt_len, batch.tgt_lens[i]),
      from = batch.src_language[i], to = batch.tgt_language[i], tag = batch.tag[i], task = batch.task[i],
      sequence = tonumber(batch.sequence[i]),
    }
  end
  return rows
end

local function all_rows(data, step, micro, ranks)
  local rows = {}
  for rank = 0, ranks - 1 do
    for _, row in ipairs(rows_of(data:get(step, micro, rank, ranks))) do rows[#rows + 1] = row end
  end
  return rows
end

local function range(first, count)
  local ids = {}
  for k = 1, count do ids[k] = first + k - 1 end
  return ids
end

local function join(...)
  local out = {}
  for _, part in ipairs { ... } do
    for _, id in ipairs(part) do out[#out + 1] = id end
  end
  return out
end

describe('batches', function()
  it('frame their rows with tags and ends', function()
    local seen = {}
    for _, row in ipairs(rows_of(batches.new(options()):get(0))) do
      seen[row.task] = true
      if row.tag == 0 then
        local i = (row.src[2] - first_id(0, 0)) / 40
        assert.equal(0, i % 1)
        assert.same(join({ PIECES['<2en>'] }, range(first_id(0, i), lengths(i, 1)), { EOS }), row.src)
        local target = range(first_id(20, i), lengths(i, 2))
        assert.same(join({ PIECES['<2en>'] }, target), row.tgt_in)
        assert.same(join(target, { EOS }), row.tgt_out)
        assert.same({ row.task + 1, 0 }, { row.from, row.to })
      end
    end
    assert.is_true(seen[0] and seen[1])
  end)

  it('take source tags and bos where asked', function()
    for _, row in ipairs(rows_of(batches.new(options { source_tags = true, start = 'bos' }):get(0))) do
      assert.same({ PIECES['<2en>'], 4 + row.from, BOS }, { row.src[1], row.src[2], row.tgt_in[1] })
    end
  end)

  it('are the same whatever the ranks', function()
    local data = batches.new(options { micro_batches = 3 })
    for step = 0, 5 do
      local next_row, tokens, targets = 0, 0, 0
      for micro = 0, 2 do
        local whole = all_rows(data, step, micro, 1)
        for _, ranks in ipairs { 2, 4, 7, 400 } do assert.same(whole, all_rows(data, step, micro, ranks)) end
        for _, row in ipairs(whole) do
          assert.equal(next_row, row.sequence)
          next_row, tokens, targets = next_row + 1, tokens + #row.src, targets + #row.tgt_out
        end
        local share = data:get(step, micro, 1, 4)
        assert.equal(#whole, share.micro_rows)
        assert.is_true(share.rows == math.floor(#whole / 4) or share.rows == math.ceil(#whole / 4))
      end
      for rank = 0, 3 do -- what every rank knows of the whole step
        local share = data:get(step, 1, rank, 4)
        assert.equal(next_row, share.step_rows)
        assert.same({ tokens, targets }, { share.step_src_tokens, share.step_tgt_tokens })
      end
    end
  end)

  it('give empty slices', function()
    local data = batches.new(options())
    local rows = data:get(0).rows
    local empty = 0
    for rank = 0, 2 * rows - 1 do
      local share = data:get(0, 0, rank, 2 * rows)
      if share.rows == 0 then
        assert.same({ 0, 0, 0, 0 }, { share.src_len, share.tgt_len, share.src_tokens, share.tgt_tokens })
        empty = empty + 1
      end
    end
    assert.equal(rows, empty)
  end)

  it('need no memory: any step first, another object, the same rows; JIT on or off', function()
    local data, forward = batches.new(options()), {}
    for step = 0, 40 do forward[step] = all_rows(data, step, 0, 1) end
    local again = batches.new(options())
    jit.off()
    jit.flush()
    for _, step in ipairs { 40, 3, 27, 0, 13, 12, 11, 40 } do
      assert.same(forward[step], all_rows(again, step, 0, 1))
    end
    jit.on()
    assert.equal(data.fingerprint, again.fingerprint)
  end)

  it('differ by the seed, and say so', function()
    local one, two = batches.new(options()), batches.new(options { seed = 6 })
    assert.not_same(all_rows(one, 0, 0, 1), all_rows(two, 0, 0, 1))
    assert.not_equal(one.fingerprint, two.fingerprint)
    assert.not_equal(one.fingerprint, batches.new(options { tokens = 901 }).fingerprint)
    local fewer = options()
    fewer.tasks[1].weight = 2
    assert.not_equal(one.fingerprint, batches.new(fewer).fingerprint)
  end)

  it('show every sentence of every task once in an epoch', function()
    local data = batches.new(options { denoising = 0.3 })
    local drawn, count = { [0] = {}, {}, {} }, { [0] = 700, 300, 700 }
    local steps = 12 * 40
    for step = 0, steps - 1 do
      for _, row in ipairs(rows_of(data:get(step))) do
        local id = row.tgt_out[1] -- the target is whole in both kinds
        local sentence = (id - first_id(20, 0)) / 40
        drawn[row.task][sentence] = (drawn[row.task][sentence] or 0) + 1
      end
    end
    local epochs = data:position(steps).epochs
    for task = 0, 2 do
      local least, most, n = math.huge, 0, 0
      for _, times in pairs(drawn[task]) do
        least, most, n = math.min(least, times), math.max(most, times), n + 1
      end
      assert.equal(count[task], n)
      assert.is_true(epochs[task + 1] > 3)
      assert.is_true(most - least <= 1) -- the begun epoch only
      assert.is_true(least == math.floor(epochs[task + 1] + 1e-6))
    end
  end)

  it('order each epoch anew', function()
    local data = batches.new(options { tasks = { options().tasks[2] }, window = 1, tokens = 300 })
    local orders, order = {}, {}
    for step = 0, 150 do
      for _, row in ipairs(rows_of(data:get(step))) do
        order[#order + 1] = row.src[2]
        if #order == 300 then
          orders[#orders + 1] = table.concat(order, ' ')
          order = {}
        end
      end
    end
    assert.is_true(#orders >= 2)
    assert.not_equal(orders[1], orders[2])
  end)

  it('mix by temperature, weight and the share of denoising', function()
    local function shares(changes)
      local data = batches.new(options(changes))
      local counts, all = { 0, 0, 0 }, 0
      for step = 0, 12 * 30 - 1 do
        local batch = data:get(step)
        for i = 0, batch.rows - 1 do counts[batch.task[i] + 1] = counts[batch.task[i] + 1] + 1 end
        all = all + batch.rows
      end
      for i = 1, 3 do
        counts[i] = counts[i] / all
        assert.near(data:task(i).share, counts[i], 0.001)
      end
      return counts
    end
    local function near(want, got)
      for i = 1, 3 do assert.near(want[i], got[i], 0.001) end
    end
    near({ 0.9 * 0.7, 0.9 * 0.3, 0.1 }, shares())
    local a, b = 700 ^ (1 / 5), 300 ^ (1 / 5)
    near({ 0.8 * a / (a + b), 0.8 * b / (a + b), 0.2 }, shares { temperature = 5, denoising = 0.2 })
    near({ 0.7, 0.3, 0 }, shares { denoising = 0 })
    local weighted = options().tasks
    weighted[1].weight = 0
    near({ 0, 0.9, 0.1 }, shares { tasks = weighted })
  end)

  it('keep to the token budget', function()
    for _, set in ipairs { { 400, 1 }, { 2000, 1 }, { 3000, 3 } } do
      local data = batches.new(options { tokens = set[1], micro_batches = set[2], window = 12 })
      local total, steps = 0, 120
      for step = 0, steps - 1 do
        local tokens = 0
        for micro = 0, set[2] - 1 do
          local batch = data:get(step, micro)
          tokens = tokens + batch.src_tokens + batch.tgt_tokens
          assert.equal(batch.micro_src_tokens, batch.src_tokens)
        end
        assert.is_true(math.abs(tokens - set[1]) < 0.25 * set[1], ('%d of %d'):format(tokens, set[1]))
        total = total + tokens
      end
      assert.near(set[1], total / steps, 0.03 * set[1])
    end
  end)

  it('never leave a micro-batch without rows, however small the budget', function()
    local data = batches.new(options { tokens = 1, window = 6 })
    for step = 0, 50 do assert.is_true(data:get(step).rows > 0) end
  end)

  it('pad little, to multiples', function()
    local data = batches.new(options { tokens = 1500, window = 64, multiple = 1 })
    local used, padded = 0, 0
    for step = 0, 127 do
      local batch = data:get(step)
      used = used + batch.src_tokens + batch.tgt_tokens
      padded = padded + batch.rows * (batch.src_len + batch.tgt_len)
    end
    assert.is_true(used / padded > 0.8)
    local eights = batches.new(options { multiple = 8 })
    for step = 0, 20 do
      local batch = eights:get(step)
      assert.same({ 0, 0 }, { batch.src_len % 8, batch.tgt_len % 8 })
      rows_of(batch) -- the rest is padding
    end
  end)

  it('drop or cut what is too long, and drop what is empty', function()
    local source, target = pair('gaps', 100, { [3] = 0, [50] = 0, [60] = 39 })
    local tasks = { { source = source, target = target, from = 'de', to = 'en' } }
    local too_long = 0
    for i = 0, 99 do
      local n = (i == 3 or i == 50) and 0 or i == 60 and 39 or lengths(i, 1)
      if n > 0 and (n > 20 or lengths(i, 2) > 20) then too_long = too_long + 1 end
    end
    assert.is_true(too_long > 10)

    local dropped = batches.new(options { tasks = tasks, max_pieces = 20 })
    local function counts(data)
      local about = data:task(1)
      return { about.sentences, about.kept, about.long, about.empty }
    end
    assert.same({ 100, 98 - too_long, too_long, 2 }, counts(dropped))
    local cut = batches.new(options { tasks = tasks, max_pieces = 20, too_long = 'cut' })
    assert.same({ 100, 98, too_long, 2 }, counts(cut))
    for _, data in ipairs { dropped, cut } do
      local longest = 0
      for step = 0, 20 do
        for _, row in ipairs(rows_of(data:get(step))) do
          longest = math.max(longest, #row.src, #row.tgt_out + 1)
          assert.is_true(#row.src > 2 and row.src[#row.src] == EOS and row.tgt_out[#row.tgt_out] == EOS)
        end
      end
      assert.is_true(longest <= 22)
      if data == cut then assert.equal(22, longest) end
    end
  end)
end)

describe('span corruption', function()
  local function denoise(changes)
    changes.tasks = { { source = en_de, from = 'en', to = 'en', kind = 'denoising' } }
    return batches.new(options(changes))
  end

  -- Puts the target's pieces back where the masks are; returns masked pieces and spans.
  local function undo(row)
    local target, at, masked, spans = row.tgt_out, 1, 0, 0
    for k = 2, #row.src - 1 do -- between the tag and eos
      if row.src[k] == MASK then
        assert.not_equal(MASK, row.src[k - 1])
        local kept = row.src[k + 1] -- the next kept piece, or eos: the span is all before it
        local from = at
        while target[at] ~= kept do
          assert(target[at], 'the source has a piece that the target lacks')
          at = at + 1
        end
        assert.is_true(at > from)
        masked, spans = masked + at - from, spans + 1
      else
        assert.equal(target[at], row.src[k])
        at = at + 1
      end
    end
    assert.equal(#target, at) -- what is left is eos
    return masked, spans
  end

  it('can be undone: source and target make the sentence, and masks are apart', function()
    local masked, spans, pieces, starts, ends = 0, 0, 0, 0, 0
    local data = denoise { mask_rate = { 0.15, 0.35 } }
    for step = 0, 200 do
      for _, row in ipairs(rows_of(data:get(step))) do
        local i = (row.tgt_out[1] - first_id(20, 0)) / 40
        assert.same(join(range(first_id(20, i), lengths(i, 2)), { EOS }), row.tgt_out)
        local m, s = undo(row)
        local n = #row.tgt_out - 1
        assert.equal(n - m + s + 2, #row.src)
        if n == 1 then assert.equal(0, m) else assert.is_true(m >= 1 and m < n) end
        if n >= 10 then
          assert.is_true(m >= 0.15 * n - 1 and m <= 0.35 * n + 1)
          masked, spans, pieces = masked + m, spans + s, pieces + n
          if row.src[2] == MASK then starts = starts + 1 end
          if row.src[#row.src - 1] == MASK then ends = ends + 1 end
        end
      end
    end
    assert.near(0.25, masked / pieces, 0.01)
    assert.near(3, masked / spans, 0.3)
    assert.is_true(starts > 50 and ends > 50) -- masks reach both ends
    assert.near(1, starts / ends, 0.25)
  end)

  it('masks anew in each epoch', function()
    local data, forms = denoise {}, {}
    for step = 0, 12 * 20 do
      for _, row in ipairs(rows_of(data:get(step))) do
        if #row.tgt_out >= 25 then
          local of = row.tgt_out[1]
          forms[of] = forms[of] or { n = 0, different = 0 }
          local key = table.concat(row.src, ' ')
          if not forms[of][key] then forms[of].different = forms[of].different + 1 end
          forms[of][key], forms[of].n = true, forms[of].n + 1
        end
      end
    end
    local several = 0
    for _, form in pairs(forms) do
      if form.n >= 3 then
        several = several + 1
        assert.is_true(form.different >= 0.7 * form.n, form.different .. ' forms of ' .. form.n)
      end
    end
    assert.is_true(several > 5)
  end)

  it('leaves all of the sentence at rate 0', function()
    for _, row in ipairs(rows_of(denoise { mask_rate = { 0, 0 } }:get(0))) do assert.equal(0, (undo(row))) end
  end)
end)

describe('fixed batches', function()
  it('have each sentence once, longest first, with its place', function()
    local data = batches.fixed(options { tasks = { options().tasks[1] }, tokens = 500 })
    local seen, previous = {}, math.huge
    for step = 0, data.steps - 1 do
      local batch = data:get(step)
      assert.is_true(batch.rows * (batch.src_len + batch.tgt_len) <= 500)
      for _, row in ipairs(rows_of(batch)) do
        assert.is_nil(seen[row.sequence])
        seen[row.sequence] = true
        assert.equal(first_id(0, row.sequence), row.src[2])
        assert.is_true(#row.src <= previous)
        previous = #row.src
      end
    end
    for i = 0, 699 do assert.is_true(seen[i]) end
    assert.error_matches(function() data:get(data.steps) end, 'batches: step')
  end)

  it('need no target, drop nothing, and are sliced like the others', function()
    local source = pair('fixed', 50, { [3] = 0, [4] = 39 })
    local tasks = { { source = source, from = 'de', to = 'en' } }
    local data = batches.fixed(options { max_pieces = 10, tokens = 200, tasks = tasks })
    local n = 0
    for step = 0, data.steps - 1 do
      local whole = all_rows(data, step, 0, 1)
      assert.same(whole, all_rows(data, step, 0, 3))
      for _, row in ipairs(whole) do
        n = n + 1
        assert.same({ { PIECES['<2en>'] }, { EOS } }, { row.tgt_in, row.tgt_out })
        if row.sequence == 3 then assert.same({ PIECES['<2en>'], EOS }, row.src) end
        if row.sequence == 4 then assert.equal(12, #row.src) end
      end
    end
    assert.equal(50, n)
  end)

  it('may be of nothing', function()
    local none = make_stream(dir .. '/none', {}, { vocab = VOCAB })
    assert.equal(0, batches.fixed(options { tasks = { { source = none, from = 'de', to = 'en' } } }).steps)
  end)
end)

describe('batches say what is wrong:', function()
  local function fails(pattern, changes)
    local _, message = pcall(function() batches.new(options(changes)) end)
    assert.matches('batches_spec.lua:%d+: batches.*' .. pattern, message)
  end

  it('options', function()
    fails("no option 'token'", { token = 5 })
    fails('0 tokens a step', { tokens = 0 })
    fails('it must be a multiple', { micro_batches = 5, window = 12 })
    fails('temperature is 0', { temperature = 0 })
    fails('denoising of 1.5', { denoising = 1.5 })
    fails('masks from 0.5 to 0.2', { mask_rate = { 0.5, 0.2 } })
    fails('max_pieces is 0', { max_pieces = 0 })
    fails("`start` is 'eos'", { start = 'eos' })
    fails("`too_long` is 'keep'", { too_long = 'keep' })
    fails('no tasks', { tasks = {} })
  end)

  it('tasks', function()
    local function task(changes)
      local one = { source = de, target = en_de, from = 'de', to = 'en' }
      for key, value in pairs(changes) do one[key] = value end
      return { tasks = { one } }
    end
    fails('has 700 sentences, but .*fr.tgt has 300', task { target = en_fr })
    fails("language 'xx' is not among", task { from = 'xx' })
    fails("no piece '<2it>'", { languages = { 'it', 'de' }, tasks = task({ to = 'it' }).tasks })
    fails("kind 'summary'", task { kind = 'summary' })
    fails('its target is its source', task { kind = 'denoising' })
    fails('has weight %-1', task { weight = -1 })
    fails('nothing to draw', task { weight = 0 })
    local foreign = make_stream(dir .. '/foreign', sentences(700, 20, 2), { vocab = VOCAB, model = 78 })
    fails('foreign was made by another tokenizer', task { target = foreign })
    assert.error_matches(function()
      batches.new(options { tasks = { { source = de, from = 'de', to = 'en' } } })
    end, 'task 0 has no target')
  end)

  it('places', function()
    local data = batches.new(options())
    local function at(pattern, ...)
      local where = { ... }
      assert.error_matches(function() data:get(unpack(where)) end, pattern)
    end
    at('step %-1', -1)
    at('step 0.5', 0.5)
    at('micro%-batch 1 of 1', 0, 1)
    at('rank 2 of 2', 0, 0, 2, 2)
    at('rank 0 of 0', 0, 0, 0, 0)
  end)

  it('damaged ids', function()
    local one = make_stream(dir .. '/one', { { 16, 17 } }, { vocab = VOCAB })
    local file = assert(io.open(dir .. '/one', 'r+b'))
    file:seek('set', 64)
    file:write '\255\255\255\255'
    file:close()
    local data = batches.new(options { tasks = { { source = one, target = one, from = 'de', to = 'en' } } })
    assert.error_matches(function() data:get(0) end, 'one: a damaged token stream %(sentence 0')
  end)

  it('the C interface fills only what is wanted', function()
    local C = require 'lumoe.ffi'
    local data = batches.new(options())
    local rows = data:get(3).rows
    local lens = ffi.new('int32_t[?]', rows + 1)
    lens[rows] = -5
    local buffers = ffi.new('lm_batch_buffers', { src_lens = lens })
    assert.equal(0, C.lm_batches_fill(data.handle, 3, 0, 0, 1, buffers))
    assert.is_true(lens[rows - 1] > 0)
    assert.equal(-5, lens[rows])
  end)
end)
