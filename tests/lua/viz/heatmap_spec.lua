local viz = require 'lumoe.viz'
local terminal = require 'lumoe.log.terminal'

local function lines_of(text)
  local lines = {}
  for line in text:gmatch '[^\n]+' do lines[#lines + 1] = line end
  return lines
end

local function plain(text) return (text:gsub('\27%[[%d;]*m', '')) end

local function wide(columns)
  local opts = {
    title = 'decoder.1', rows = { 'de', 'zh_TW' }, cols = {}, values = { {}, {} }, normalize = 'rows',
  }
  for c = 1, columns do
    opts.cols[c], opts.values[1][c], opts.values[2][c] = c - 1, c, columns - c
  end
  return opts
end

describe('heatmap', function()
  it('shows shares of each row as numbers where there are no colours', function()
    local text = viz.heatmap {
      title = 'encoder.1', rows = { 'de', 'fr' }, cols = { 0, 1, 2 },
      values = { { 0, 100, 300 }, { 999, 1, 0 } },
      normalize = 'rows', colors = 0, width = 80,
    }
    assert.same({
      'encoder.1',
      '      0   1   2',
      'de    ·  25  75',
      'fr  100  <1   ·',
      '(percent of the row; · is zero)',
    }, lines_of(text))
  end)

  it('shows the same numbers on coloured cells, and a scale', function()
    local opts = { rows = { 'de' }, cols = { 0, 1 }, values = { { 1, 3 } }, normalize = 'rows', width = 80 }
    opts.colors = 256
    local few = viz.heatmap(opts)
    opts.colors = 2 ^ 24
    local many = viz.heatmap(opts)
    assert.equal('de   25  75 ', lines_of(plain(few))[2])
    assert.equal(plain(few), plain(many))
    assert.matches('\27%[38;5;%d+;48;5;%d+m 75 ', few)
    assert.matches('\27%[38;5;16;48;2;253;231;37m 75 ', many) -- the largest: the brightest, with black on it
    assert.matches('0%% +75%% of the row', lines_of(plain(few))[3])
    for line in few:gmatch '[^\n]*48;5[^\n]*' do assert.matches('\27%[0m', line) end
  end)

  it('gives one digit to a cell where numbers do not fit', function()
    local opts = wide(32)
    opts.colors, opts.width = 0, 80
    local lines = lines_of(viz.heatmap(opts))
    assert.equal(5, #lines)
    assert.equal('decoder.1', lines[1])
    assert.matches('^       0         5         10 ', lines[2])
    assert.matches('^ +de   0 0 0 1 1 1', lines[3])
    assert.matches(' 9$', lines[3])
    assert.matches(' ·$', lines[4])
    assert.matches('tenths of', lines[5])
  end)

  it('never writes past the width', function()
    for _, columns in ipairs { 1, 2, 8, 16, 17, 64, 130 } do
      for _, colors in ipairs { 0, 256 } do
        for _, width in ipairs { 40, 80, 132 } do
          local opts = wide(columns)
          opts.colors, opts.width = colors, width
          local text = viz.heatmap(opts)
          local cells = 0
          for i, line in ipairs(lines_of(plain(text))) do
            assert.is_true(terminal.columns(line) <= width,
              ('%d columns in %d: %s'):format(columns, width, line))
            if i > 1 and colors == 0 and line:match '^ +de ' then
              cells = cells + select(2, line:gsub('%d+', ''))
            end
          end
          if colors == 0 then
            assert.is_true(cells == columns, columns .. ' columns, ' .. cells .. ' cells')
          end
        end
      end
    end
  end)

  it('shows values as they are without normalize, and ? for the unknown', function()
    local text = viz.heatmap {
      rows = { 'a', 'b' }, cols = { 'x', 'y', 'z' },
      values = { { 0.5, 12.3, 1500 }, { 0 / 0, nil, 0 } }, colors = 0, width = 80,
    }
    assert.same({ '     x   y   z', 'a  0.5  12 >1k', 'b    ?   ?   ·', '(· is zero)' }, lines_of(text))
  end)

  it('takes experts nobody uses, and maps without rows', function()
    local opts = {
      rows = { 'de' }, cols = { 0, 1 }, values = { { 0, 0 } }, normalize = 'rows', colors = 256, width = 80,
    }
    local text = viz.heatmap(opts)
    assert.matches('de    ·   ·', plain(text))
    viz.heatmap { rows = {}, cols = {}, values = {}, colors = 0, width = 80 }
  end)

  it('has no colours when it does not go to a terminal', function()
    local file = io.tmpfile()
    local text = viz.heatmap { rows = { 'de' }, cols = { 0 }, values = { { 1 } }, stream = file }
    file:close()
    assert.not_matches('\27', text)
  end)

  it('names what is wrong', function()
    local function message(opts) return select(2, pcall(viz.heatmap, opts)) end
    assert.matches('heatmap: 0 rows of values, but 1 labels',
      message { rows = { 'a' }, cols = {}, values = {} })
    assert.matches('heatmap: row 1 has 2 values, but there are 1 labels',
      message { rows = { 'a' }, cols = { 'x' }, values = { { 1, 2 } } })
    assert.matches('heatmap: value %[1%]%[1%] is negative: %-1',
      message { rows = { 'a' }, cols = { 'x' }, values = { { -1 } } })
    assert.matches("normalize must be 'rows'",
      message { rows = {}, cols = {}, values = {}, normalize = 'columns' })
    assert.matches("no option 'colour'", message { rows = {}, cols = {}, values = {}, colour = 1 })
  end)
end)
