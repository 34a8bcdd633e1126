local cjson = require 'cjson'
local viz = require 'lumoe.viz'

local function run(steps)
  local records = { { config = true } }
  for step = 1, steps do
    records[#records + 1] = {
      step = step, loss = 10 / step, dropped = 0.02, tokens_per_s = 5000 + step % 7, lr = 1e-3,
    }
  end
  return records
end

describe('training_curves', function()
  it('has a curve for each thing that was logged', function()
    local titles = {}
    for i, curve in ipairs(viz.training_curves(run(10))) do titles[i] = curve.title end
    assert.same({ 'Loss', 'Tokens per second', 'Dropped routes (%)', 'Learning rate' }, titles)
    assert.same({}, viz.training_curves {})
  end)

  it('keeps short runs as they are', function()
    local loss = viz.training_curves(run(10))[1].series
    assert.equal(1, #loss)
    assert.equal(10, #loss[1].x)
    assert.equal(2, loss[1].y[5])
  end)

  it('thins long runs by means, and smooths them without moving them', function()
    local curves = viz.training_curves(run(10000))
    local raw, smooth = curves[2].series[1], curves[2].series[2]
    assert.is_true(raw.faint and #raw.x <= 800 and #raw.x > 400)
    assert.equal(10000, raw.x[#raw.x])
    assert.equal(#raw.y, #smooth.y)
    assert.near(2, curves[3].series[2].y[100], 1e-9) -- percent
    local records = {}
    for step = 1, 400 do records[step] = { step = step, loss = 500 - step } end
    local straight = viz.training_curves(records)[1].series[2].y
    for i = 20, 380 do assert.near(500 - i, straight[i], 1e-9) end
  end)

  it('draws several runs into one picture, each by its name', function()
    local dense = run(50)
    for _, record in ipairs(dense) do record.dropped = nil end
    local curves = viz.training_curves { { name = 'MoE', records = run(50) }, { name = 'dense', records = dense } }
    assert.equal(4, #curves)
    local names = {}
    for i, line in ipairs(curves[1].series) do names[i] = line.name end
    assert.same({ 'MoE', 'dense' }, names)
    assert.equal(1, #curves[3].series) -- drops: the one that has any
  end)

  it('goes over steps, tokens or minutes', function()
    local records = {}
    for step = 1, 5 do records[step] = { step = step, loss = 1, tokens = 2e6 * step, seconds = 30 * step } end
    for over, want in pairs { step = { 5, 'step' }, tokens = { 10, 'million tokens' }, minutes = { 2.5, 'minutes' } } do
      local loss = viz.training_curves(records, over).loss
      assert.same(want, { loss.series[1].x[5], loss.xlabel })
    end
    assert.error_matches(function() viz.training_curves(records, 'epochs') end, "over 'epochs'; there are")
  end)

  it('passes over what is null or not finite', function()
    local records = run(3)
    records[3].loss, records[4].loss = cjson.null, 0 / 0
    assert.same({ 1 }, viz.training_curves(records)[1].series[1].x)
  end)
end)
