--- Curves and bars drawn by gnuplot: SVG or PNG files, SVG text for a page, or characters for a terminal.
local options = require 'lumoe.options'

local MISSING = 'gnuplot is not installed; on Debian or Ubuntu: apt-get install gnuplot-nox'
local TERMINALS = {
  svg = "svg size %d,%d dynamic noenhanced font 'sans-serif,13' rounded linewidth 1.2 background '#ffffff'",
  png = "pngcairo size %d,%d noenhanced font 'sans-serif,11' linewidth 1.5",
  text = 'dumb size %d,%d noenhanced',
}
local COLORS = { '#1f6fb4', '#d1603d', '#3a923a', '#8a5fb5', '#8c6d31', '#d0679d', '#5f6b75' }

local function installed()
  local status = os.execute 'command -v gnuplot >/dev/null 2>&1'
  return status == 0 or status == true
end

local function quoted(text) return "'" .. tostring(text):gsub("'", "''"):gsub('[%c]', ' ') .. "'" end

local function contents(path)
  local file = assert(io.open(path, 'rb'))
  local bytes = file:read '*a'
  file:close()
  return bytes
end

-- A named data block: points where both numbers are finite.
local function data_block(name, series)
  local lines = { name .. ' << END' }
  for i = 1, #series.x do
    local x, y = series.x[i], series.y[i]
    if type(x) == 'number' and type(y) == 'number' and x - x == 0 and y - y == 0 then
      lines[#lines + 1] = ('%.9g %.9g'):format(x, y)
    end
  end
  lines[#lines + 1] = 'END\n'
  return table.concat(lines, '\n'), #lines - 2
end

local function curves(opts, kind, output)
  local width = opts.width or (kind == 'text' and 79 or 720)
  local height = opts.height or (kind == 'text' and 20 or 300)
  local out, plots, drawn = {}, {}, 0
  for i, series in ipairs(opts.series) do
    local name = '$s' .. i
    local block, points = data_block(name, series)
    if points > 0 then
      out[#out + 1] = block
      local style = "lc rgb '#b8cde0' lw 1"
      if not series.faint then
        style = ("lc rgb '%s' lw 2"):format(COLORS[drawn % #COLORS + 1])
        drawn = drawn + 1
      end
      plots[#plots + 1] = ('%s using 1:2 with %s %s title %s'):format(
        name, points == 1 and 'points pt 7' or 'lines', style, series.name and quoted(series.name) or "''")
    end
  end
  if #plots == 0 then
    options.raise('curve', 'no points to draw%s', opts.title and " in '" .. opts.title .. "'" or '')
  end

  local function add(...) out[#out + 1] = (...) end
  add 'set encoding utf8'
  add('set terminal ' .. TERMINALS[kind]:format(width, height))
  add('set output ' .. quoted(output))
  if opts.title then add('set title ' .. quoted(opts.title)) end
  if opts.xlabel then add('set xlabel ' .. quoted(opts.xlabel)) end
  if opts.ylabel then add('set ylabel ' .. quoted(opts.ylabel)) end
  if opts.log_y then add 'set logscale y' end
  if kind ~= 'text' then
    add "set border 3 lc rgb '#888888'"
    add "set grid ytics lc rgb '#e4e7eb' lt 1"
    add 'set tics nomirror out scale 0.5'
    add 'set key top right samplen 2'
    add 'set title offset 0, -0.6'
    add 'set xlabel offset 0, 0.4'
  end
  add 'set offsets graph 0, graph 0, graph 0.04, graph 0'
  add('plot ' .. table.concat(plots, ', '))
  return table.concat(out, '\n') .. '\n'
end

-- Runs what script(opts, kind, output) gives; the picture comes back as a string. Only names of our own making
-- reach the shell.
local function draw(who, script, opts, kind)
  if not installed() then options.raise(who, '%s', MISSING) end
  local source, output, errors = os.tmpname(), os.tmpname(), os.tmpname()
  local good, result = pcall(function()
    local file = assert(io.open(source, 'w'))
    assert(file:write(script(opts, kind, output)))
    assert(file:close())
    local status = os.execute(('gnuplot %s 2>%s'):format(source, errors))
    local picture = contents(output)
    if not (status == 0 or status == true) or picture == '' then
      options.raise(who, 'gnuplot failed: %s', contents(errors))
    end
    return picture
  end)
  for _, path in ipairs { source, output, errors } do os.remove(path) end
  if not good then error(result, 0) end
  return result
end

-- The picture, or nothing where it went into the file that opts.out names.
local function deliver(who, script, opts)
  local kind = opts.kind or 'text'
  if opts.out then
    local ending = opts.out:match '%.(%a+)$'
    kind = ending == 'txt' and 'text' or ending
    if not TERMINALS[kind] then
      options.raise(who, "'%s' does not end in .svg, .png or .txt", opts.out)
    end
  elseif not TERMINALS[kind] then
    options.raise(who, "no kind '%s'; there are svg, png and text", kind)
  end
  local picture = draw(who, script, opts, kind)
  if not opts.out then return picture end
  local file, message = io.open(opts.out, 'wb')
  if not file then options.raise(who, '%s', message) end
  assert(file:write(picture))
  assert(file:close())
end

local WANTED = {
  series = 'table', title = 'string?', xlabel = 'string?', ylabel = 'string?', log_y = 'boolean?',
  width = 'number?',
  height = 'number?', out = 'string?', kind = 'string?',
}

--- Draws curves into a file, or returns the picture.
---@param opts table  series: table[]; title, xlabel, ylabel, out, kind: string?; log_y: boolean?
---  series: `{ name = …, x = numbers, y = numbers, faint = true? }` each; points not finite are left out;
---  out: a path that ends in .svg, .png or .txt; without it the picture is returned, its kind being `svg`,
---  `png` or `text` (default); width, height: pixels, or characters of text
---@return string? picture  when there is no `out`
local function curve(opts)
  options.check('curve', opts, WANTED)
  return deliver('curve', curves, opts)
end

-- ---- bars ----------------------------------------------------------------------------------

-- Bars lie, one under the other, so that their labels can be long. With a mark they go from there, each as far as it
-- is times more or less: less is of another colour.
local function bars_script(opts, kind, output)
  local n, out, labels, notes, colors = #opts.bars, {}, {}, opts.notes or {}, {}
  local function add(line, ...) out[#out + 1] = line:format(...) end
  add '$bars << END'
  for i, bar in ipairs(opts.bars) do
    local value = bar.value
    if value - value ~= 0 then options.raise('bars', "'%s' is %s", bar.label, tostring(value)) end
    local color = opts.mark and value < opts.mark and 2 or 1
    colors[color] = true
    add('%d %.9g %d', n - i, value, color)
    labels[i] = ('%s %d'):format(quoted(bar.label), n - i)
  end
  add 'END'
  add 'set encoding utf8'
  add('%s', 'set terminal ' .. TERMINALS[kind]:format(opts.width or (kind == 'text' and 79 or 860),
    opts.height or (kind == 'text' and n + #notes + 8 or 160 + 18 * n + 17 * #notes)))
  add('set output %s', quoted(output))
  if opts.title then add('set title %s', quoted(opts.title)) end
  local below = { opts.xlabel or '', unpack(notes) }
  for i, line in ipairs(below) do below[i] = quoted(line) end -- joined by gnuplot: quoted text holds no line's end
  add('set xlabel %s', table.concat(below, '."\\n".'))
  if opts.mark then
    local least, most = opts.mark, opts.mark
    for _, bar in ipairs(opts.bars) do least, most = math.min(least, bar.value), math.max(most, bar.value) end
    add 'set logscale x 2'
    add('set xrange [%.9g:%.9g]', least / 1.5, most * 1.5)
    add('set arrow from first %.9g, graph 0 to first %.9g, graph 1 nohead front', opts.mark, opts.mark)
  end
  add('set yrange [-0.7:%.1f]', n - 0.3)
  add 'set xtics nomirror out'
  add('set ytics nomirror scale 0 (%s)', table.concat(labels, ', '))
  if kind ~= 'text' then
    add "set border 3 lc rgb '#888888'"
    add "set grid xtics lc rgb '#e4e7eb' lt 1"
  end
  add 'set style fill solid noborder'
  local from, plots = opts.mark and ('%.9g'):format(opts.mark) or '0', {}
  for color in pairs(colors) do
    plots[#plots + 1] = ("$bars using (%s):($3==%d?$1:NaN):(%s):2:($1-0.36):($1+0.36) with boxxyerror lc rgb '%s' title ''")
      :format(from, color, from, COLORS[color])
    plots[#plots + 1] = ("$bars using 2:($3==%d?$1:NaN):(sprintf(' %%.3g ', $2)) with labels %s title ''")
      :format(color, color == 1 and 'left' or 'right')
  end
  add('%s', 'plot ' .. table.concat(plots, ', '))
  return table.concat(out, '\n') .. '\n'
end

local BARS = { bars = 'table', title = 'string?', xlabel = 'string?', notes = 'table?', mark = 'number?', width = 'number?',
  height = 'number?', out = 'string?', kind = 'string?' }

--- Draws bars into a file, or returns the picture, as `curve` does.
---@param opts table  bars: { label = text, value = number } each; title, xlabel, out, kind: string?; mark: number?; notes:
---  string[]?, lines under all
---  mark: values are ratios to it, all above 0, and bars begin there, on a logarithmic scale
---@return string? picture  when there is no `out`
local function bars(opts)
  options.check('bars', opts, BARS)
  if #opts.bars == 0 then options.raise('bars', 'no bars to draw') end
  return deliver('bars', bars_script, opts)
end

return { curve = curve, bars = bars, installed = installed, MISSING = MISSING }
