local schedule = require('lumoe').optim.schedule

local function check(lr, want)
  for step, value in pairs(want) do assert.near(value, lr(step), 1e-12, 'step ' .. step) end
end

describe('schedules', function()
  it('warm up linearly, to lr at the last step of the warm-up', function()
    for _, shape in ipairs { 'constant', 'inverse_sqrt', 'linear', 'cosine' } do
      check(schedule { shape, lr = 2, warmup = 4, steps = 20 }, { [1] = 0.5, [2] = 1, [4] = 2 })
    end
  end)

  it('constant', function() check(schedule { 'constant', lr = 3 }, { [1] = 3, [1000] = 3 }) end)

  it('inverse square root', function()
    check(schedule { 'inverse_sqrt', lr = 2, warmup = 100 }, { [100] = 2, [400] = 1, [10000] = 0.2 })
    check(schedule { 'inverse_sqrt', lr = 2 }, { [1] = 2, [4] = 1 })
  end)

  it('linear, down to its floor', function()
    check(schedule { 'linear', lr = 2, warmup = 10, steps = 110 }, { [10] = 2, [60] = 1, [110] = 0, [500] = 0 })
    check(schedule { 'linear', lr = 2, warmup = 10, steps = 110, floor = 0.5 }, { [60] = 1.5, [110] = 1, [500] = 1 })
  end)

  it('cosine, one cycle', function()
    local lr = schedule { 'cosine', lr = 2, warmup = 10, steps = 110 }
    check(lr, { [10] = 2, [60] = 1, [110] = 0, [500] = 0, [35] = 1 + math.cos(math.pi / 4) })
    check(schedule { 'cosine', lr = 2, warmup = 10, steps = 110, floor = 0.1 }, { [110] = 0.2, [60] = 1.1 })
  end)

  it('mistakes are errors with a name', function()
    for want, opts in pairs {
      ["optim.schedule: no shape 'step'; there are constant cosine inverse_sqrt linear"] = { 'step', lr = 1 },
      ['optim.schedule: cosine needs steps'] = { 'cosine', lr = 1 },
      ["optim.schedule: unknown option 'warm'"] = { 'constant', lr = 1, warm = 3 },
      ["optim.schedule: option 'lr' is missing"] = { 'constant' },
    } do
      local ok, message = pcall(schedule, opts)
      assert.is_false(ok)
      assert.truthy(message:find(want, 1, true), message)
    end
  end)
end)
