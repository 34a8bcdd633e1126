local viz = require 'lumoe.viz'
local gnuplot = require 'lumoe.viz.gnuplot'

local LINE = { { name = 'loss', x = { 1, 2, 3, 4 }, y = { 9, 5, 4, 3.5 } } }

local function contents(path)
  local file = assert(io.open(path, 'rb'))
  local bytes = file:read '*a'
  file:close()
  os.remove(path)
  return bytes
end

describe('curve', function()
  it('is installed here', function() assert.is_true(gnuplot.installed(), gnuplot.MISSING) end)

  it('draws characters for a terminal', function()
    local text = viz.curve { series = LINE, title = 'Loss', xlabel = 'step', width = 60, height = 15 }
    assert.matches('Loss', text)
    assert.matches('%*%*%*', text)
    assert.matches('step', text)
    for line in text:gmatch '[^\n]+' do assert.is_true(#line <= 61, line) end
  end)

  it('draws SVG, with the curve where the numbers are', function()
    local svg = viz.curve { series = { { x = LINE[1].x, y = LINE[1].y } }, kind = 'svg' }
    assert.matches('<svg.*</svg>', svg)
    local points = svg:match "<path stroke='rgb%( *31, 111, 180%)' +d='(M[^']*)"
    assert.is_string(points)
    local ys = {}
    for y in points:gmatch '[ML]?[%d.]+,([%d.]+)' do ys[#ys + 1] = tonumber(y) end
    assert.equal(4, #ys, points)
    for i = 2, 4 do assert.is_true(ys[i] > ys[i - 1]) end -- downwards, as the loss falls
    assert.near((9 - 5) / (5 - 4), (ys[2] - ys[1]) / (ys[3] - ys[2]), 0.05)
  end)

  it('writes files, their kind being in their name', function()
    local path = os.tmpname()
    os.remove(path)
    assert.is_nil(viz.curve { series = LINE, out = path .. '.png' })
    assert.equal('\137PNG', contents(path .. '.png'):sub(1, 4))
    viz.curve { series = LINE, out = path .. '.svg' }
    assert.matches('<svg', contents(path .. '.svg'))
    viz.curve { series = LINE, out = path .. ".it's.txt" }
    assert.matches('%*%*', contents(path .. ".it's.txt"))
  end)

  it('leaves out what is not finite, and takes one point', function()
    local text = viz.curve {
      series = { { x = { 1, 2, 3 }, y = { 1, 0 / 0, math.huge } } }, width = 40, height = 10,
    }
    assert.is_string(text)
  end)

  it('passes titles through as text', function()
    local svg = viz.curve { series = LINE, title = "it's `x_1` <b> & \"$(touch pwned)\"", kind = 'svg' }
    assert.is_truthy(svg:find("it's `x_1` &lt;b", 1, true))
    assert.is_truthy(svg:find('&amp; "$(touch pwned)"', 1, true))
  end)

  it('names what is wrong', function()
    local function message(opts) return select(2, pcall(viz.curve, opts)) end
    assert.matches("curve: no points to draw in 'Loss'",
      message { series = { { x = {}, y = {} } }, title = 'Loss' })
    assert.matches("curve: 'x.gif' does not end in", message { series = LINE, out = 'x.gif' })
    assert.matches("curve: no kind 'gif'", message { series = LINE, kind = 'gif' })
    assert.matches('curve: .*not/there', message { series = LINE, out = '/not/there.svg' })
  end)
end)

describe('bars', function()
  -- Rectangles of a colour, as { left, right } in pixels, from the topmost down.
  local function rectangles(svg, color)
    local list = {}
    for points in svg:gmatch("<polygon fill = '" .. color .. "' points = '([^']*)'") do
      local left, right = math.huge, -math.huge
      for x in points:gmatch '([%d.]+),[%d.]+' do
        left, right = math.min(left, tonumber(x)), math.max(right, tonumber(x))
      end
      list[#list + 1] = { left, right }
    end
    return list
  end

  it('go from the mark, each as far as it is times more or less', function()
    local svg = viz.bars { kind = 'svg', mark = 1, xlabel = 'ours over theirs', title = 'layer',
      bars = { { label = 'E 8 "balanced"', value = 2 }, { label = 'E 32', value = 0.5 }, { label = 'E 128', value = 4 } } }
    for _, text in ipairs { 'balanced', 'E 128', 'ours over theirs', 'layer' } do
      assert.is_truthy(svg:find(text, 1, true), text .. '\n' .. svg)
    end
    local more, less = rectangles(svg, 'rgb%( *31, 111, 180%)'), rectangles(svg, 'rgb%(209, +96, +61%)')
    assert.equal(2, #more, svg)
    assert.equal(1, #less)
    local function width(r) return r[2] - r[1] end
    assert.near(2, width(more[2]) / width(more[1]), 0.02) -- four times is twice two times
    assert.near(width(more[1]), width(less[1]), 1)
    assert.near(more[1][1], less[1][2], 1)
  end)

  it('go from 0 without one', function()
    local svg = viz.bars { kind = 'svg', bars = { { label = 'a', value = 10 }, { label = 'b', value = 30 } },
      notes = { "it's a note", 'another' } }
    assert.is_truthy(svg:find("it's a note", 1, true))
    assert.is_truthy(svg:find('another', 1, true))
    local all = rectangles(svg, 'rgb%( *31, 111, 180%)')
    assert.equal(2, #all)
    assert.near(3, (all[2][2] - all[2][1]) / (all[1][2] - all[1][1]), 0.02)
  end)

  it('may all be more than the mark, or less', function()
    for _, value in ipairs { 3, 0.3 } do
      assert.matches('</svg>', viz.bars { kind = 'svg', mark = 1, bars = { { label = 'a', value = value } } })
    end
  end)

  it('says what it cannot draw', function()
    assert.error_matches(function() viz.bars { bars = {} } end, 'bars: no bars to draw')
    assert.error_matches(function() viz.bars { bars = { { label = 'x', value = 0 / 0 } } } end, "bars: 'x' is")
  end)
end)
