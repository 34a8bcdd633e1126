local lumoe = os.getenv 'LUMOE' or 'build/bin/lumoe'

local function run(ranks, program, ...)
  local command = ('LUMOE_DEBUG=collectives mpirun -np %d --oversubscribe --allow-run-as-root %s tests/lua/moe/%s %s 2>&1; echo "exit $?"')
    :format(ranks, lumoe, program, table.concat({ ... }, ' '))
  local pipe = assert(io.popen(command))
  local output = pipe:read '*a'
  pipe:close()
  return output
end

-- name -> numbers, over all ranks; what several ranks say must be the same, to the last bit of text.
local function results(ranks, ep, router, deal, exchange, tp, etp)
  local file = os.tmpname()
  assert.equal('exit 0\n', run(ranks, 'layouts.lua', file, ep, router, deal, exchange or 'rows', tp or 1, etp or 1))
  local all = {}
  for rank = 0, ranks - 1 do
    for line in io.lines(file .. '.' .. rank) do
      local name, text = line:match '^(.-) = (.*)$'
      if all[name] then assert.equal(all[name], text, name .. ' differs between ranks') end
      all[name] = text
    end
    os.remove(file .. '.' .. rank)
  end
  os.remove(file)
  return all
end

local function numbers(text)
  local list = {}
  for word in text:gmatch '%S+' do list[#list + 1] = tonumber(word) end
  return list
end

-- The distance of two lists, and the length of the first.
local function apart(a, b)
  local distance, length = 0, 0
  for i = 1, #a do distance, length = distance + (a[i] - b[i]) ^ 2, length + a[i] ^ 2 end
  return math.sqrt(distance), math.sqrt(length)
end

local function compare(want, got)
  local count, norm = 0, {}
  for step = 1, 3 do norm[step] = tonumber(want['norm ' .. step]) end
  for name, text in pairs(want) do
    assert.is_string(got[name], name .. ' is missing')
    local a, b = numbers(text), numbers(got[name])
    assert.equal(#a, #b, name)
    local distance, length = apart(a, b)
    local allowed = 0
    if name:find '^grad' then allowed = 1e-5 * math.max(length, 1e-3 * norm[tonumber(name:match '%d+')])
    elseif name:find '^loss' or name:find '^norm' then allowed = 1e-6 * length end
    assert.is_true(distance <= allowed, ('%s is off by %.3g of %.3g'):format(name, distance, length))
    count = count + #a
  end
  for name in pairs(got) do assert.is_string(want[name], name .. ' is new') end
  return count
end

describe('one batch under every layout', function()
  local alone = {}
  local function baseline(router)
    alone[router] = alone[router] or results(1, 1, router, 'even')
    return alone[router]
  end

  for _, case in ipairs {
    { 2, 1, 'noisy', 'even' }, { 2, 2, 'noisy', 'even' }, { 2, 2, 'noisy', 'uneven' }, { 4, 2, 'noisy', 'mixed' },
    { 4, 4, 'noisy', 'uneven' }, { 3, 3, 'noisy', 'mixed' }, { 4, 2, 'switch', 'even' }, { 4, 4, 'top_k', 'mixed' },
    { 2, 2, 'top_k', 'even', 'once' }, { 4, 4, 'noisy', 'uneven', 'padded' }, { 4, 4, 'top_k', 'mixed', 'two_level' },
    { 4, 4, 'top_k', 'uneven', 'parts' }, { 4, 2, 'noisy', 'mixed', 'shadow' },
    { 2, 1, 'noisy', 'even', 'rows', 2, 1 }, { 4, 2, 'noisy', 'uneven', 'rows', 2, 1 }, { 3, 3, 'top_k', 'even', 'once', 3, 1 },
    { 2, 1, 'noisy', 'uneven', 'rows', 1, 2 }, { 3, 1, 'noisy', 'even', 'rows', 1, 3 }, { 4, 2, 'noisy', 'mixed', 'once', 1, 2 },
    { 4, 2, 'switch', 'even', 'rows', 2, 2 }, { 6, 1, 'top_k', 'mixed', 'padded', 2, 3 }, { 4, 1, 'noisy', 'mixed', 'rows', 4, 2 },
  } do
    local name = ('%d ranks, ep %d, %s router, %s, %s, tp %d, etp %d'):format(case[1], case[2], case[3], case[4],
      case[5] or 'rows', case[6] or 1, case[7] or 1)
    it('gives the same losses, drops, gradients and statistics: ' .. name, function()
      local want = baseline(case[3])
      assert.is_true(tonumber(want['dropped 1 1']) > 0)
      assert.is_true(compare(want, results(unpack(case))) > 1000)
    end)
  end
end)

describe('a layer within a tensor group', function()
  for _, ranks in ipairs { 2, 4 } do
    it(('is the layer of one rank: %d ranks'):format(ranks), function()
      assert.equal('all well\nexit 0\n', run(ranks, 'tensor_group.lua'))
    end)
  end
end)

describe('a mistake on one rank', function()
  for _, case in ipairs {
    { 'ids', "router 'router': expert id 9, for token %d+ in slot 0" },
    { 'nan', "router 'router': the score of token %d+ for expert 0 is NaN" },
    { 'shape', 'expert_ids are %[2, 1%]' },
    { 'lua', 'mistakes.lua:%d+: a slip' },
  } do
    it('is an error of all: ' .. case[1], function()
      local output = run(3, 'mistakes.lua', case[1])
      for rank = 0, 2 do assert.matches(('rank %d: [^\n]*'):format(rank) .. case[2], output) end
      assert.matches('exit 0', output)
    end)
  end
end)
