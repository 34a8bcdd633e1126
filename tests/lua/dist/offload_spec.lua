--- Offload: the same training as in memory, to the last bit, with bytes where they were promised.
-- slow: jobs of up to three ranks on few cores
local results = require 'tests.lua.dist.results'

-- On so many ranks: what both have, and what is offloaded.
local CASES = {
  [1] = {
    { '', 'optimizer' },
    { '', 'parameters' },
    { '', 'parameters bucket=1000000' },
    { '', 'parameters mapped=yes' },
    { 'dtype=bf16', 'optimizer' },
    { 'dtype=bf16', 'parameters' },
    { 'dtype=bf16 optimizer=SGD', 'parameters' },
    { 'recompute=yes', 'parameters' },
    { 'fail=yes', 'parameters' },
  },
  [2] = {
    { 'ep=2', 'optimizer' },
    { 'ep=2', 'parameters' },
    { 'ep=2', 'optimizer mapped=yes' },
    { 'dense=2 expert=2 micro=2', 'optimizer' },
    { 'dense=3 expert=3 micro=2', 'optimizer' },
    { 'dense=3 expert=3 micro=2 dtype=bf16', 'parameters' },
  },
  [3] = { -- nothing divides by 3; a rank without tokens
    { 'dense=1 expert=2 deal=uneven', 'optimizer' },
    { 'dense=3 expert=2 deal=uneven', 'parameters' },
  },
}

local function check(want, got, what, ranks)
  assert(results.compare(want, got, 0) > 1500)
  for rank = 0, ranks - 1 do
    local before, after = want.bytes[rank], got.bytes[rank]
    assert(before.optimizer > 4000 and before.parameters > 2000, 'the model takes no memory?')
    assert(after.optimizer == 0, 'optimizer state is in memory')
    assert(after.gradients == 0, 'gradients are in memory')
    local parameters = what == 'optimizer' and before.parameters or 0
    assert(after.parameters == parameters, ('%d bytes of parameters in memory, wanted %d'):format(after.parameters, parameters))
  end
end

describe('offload', function()
  for ranks, cases in pairs(CASES) do
    it(('trains as memory does, bit for bit: %d rank%s'):format(ranks, ranks > 1 and 's' or ''), function()
      local layouts = {}
      for _, case in ipairs(cases) do
        layouts[#layouts + 1] = case[1]
        layouts[#layouts + 1] = ('%s offload=%s'):format(unpack(case))
      end
      local list = results.of(ranks, layouts)
      for i, case in ipairs(cases) do
        local ok, message = pcall(check, list[2 * i - 1], list[2 * i], case[2]:match '%a+', ranks)
        assert.is_true(ok, layouts[2 * i] .. ': ' .. tostring(message))
      end
    end)
  end

  it('adds up micro-batches in the tier', function()
    -- in memory a micro-batch is added as its products are formed, which rounds elsewhere
    local list = results.of(1, { 'micro=3', 'micro=3 offload=parameters' })
    results.compare(list[1], list[2], 1e-6)
  end)
end)
