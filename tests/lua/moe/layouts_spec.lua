local lumoe = os.getenv 'LUMOE' or 'build/bin/lumoe'

local function run(ranks, program, ...)
  local command = ('mpirun -np %d --oversubscribe --allow-run-as-root %s tests/lua/moe/%s %s 2>&1; echo "exit $?"')
    :format(ranks, lumoe, program, table.concat({ ... }, ' '))
  local pipe = assert(io.popen(command))
  local output = pipe:read '*a'
  pipe:close()
  return output
end

-- name -> numbers, over all ranks; what several ranks say must be the same, to the last bit of text.
local function results(ranks, ep, router, deal, exchange)
  local file = os.tmpname()
  assert.equal('exit 0\n', run(ranks, 'layouts.lua', file, ep, router, deal, exchange or 'rows'))
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

local function compare(want, got)
  local count, norm = 0, {}
  for step = 1, 3 do norm[step] = tonumber(want['norm ' .. step]) end
  for name, text in pairs(want) do
    assert.is_string(got[name], name .. ' is missing')
    local a, b = numbers(text), numbers(got[name])
    assert.equal(#a, #b, name)
    local exact = not (name:find '^loss' or name:find '^norm' or name:find '^grad')
    for i = 1, #a do
      local scale = name:find '^grad' and norm[tonumber(name:match '%d+')] or math.abs(a[i])
      assert.near(a[i], b[i], exact and 0 or 1e-5 * scale, name)
      count = count + 1
    end
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
  } do
    local name = 'gives the same losses, drops, gradients and statistics: %d ranks, ep %d, %s router, %s, %s'
    it(name:format(case[1], case[2], case[3], case[4], case[5] or 'rows'), function()
      local want = baseline(case[3])
      assert.is_true(tonumber(want['dropped 1 1']) > 0)
      assert.is_true(compare(want, results(unpack(case))) > 1000)
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
