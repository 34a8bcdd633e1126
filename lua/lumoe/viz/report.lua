--- report.html: a run on one page, in one file that needs nothing else: no script, no font, no network.
local grid = require 'lumoe.viz.grid'
local gnuplot = require 'lumoe.viz.gnuplot'
local options = require 'lumoe.options'
local palette = require 'lumoe.viz.palette'
local scores = require 'lumoe.metrics.scores'

local STYLE = [[
body { font: 15px/1.5 system-ui, "Noto Sans", sans-serif; color: #1f2933; background: #fff; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: .2rem 0; }
.about, .key, .signature { color: #616e7c; }
.key, .signature { font-size: .8rem; }
.signature { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.plain td, .plain th { padding: .2rem .7rem; border-bottom: 1px solid #e4e7eb; text-align: right;
  font-weight: normal; }
.plain th { color: #616e7c; }
.plain td:first-child, .plain th:first-child { text-align: left; padding-left: 0; }
.plain .mean td { font-weight: 600; }
.config { columns: 3 15rem; margin: 0; }
.config div { break-inside: avoid; }
.config dt { display: inline; color: #616e7c; }
.config dd { display: inline; margin: 0 0 0 .4rem; overflow-wrap: anywhere; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: .8rem; }
.curves svg { width: 100%; height: auto; }
.maps { display: flex; flex-wrap: wrap; gap: 1.4rem 2.4rem; }
.map td, .map th { font-size: .78rem; font-weight: normal; text-align: center; padding: .12rem .2rem;
  min-width: 1.7rem; }
.map.small td, .map.small th { min-width: .55rem; padding: .3rem 0; font-size: .6rem; }
.map th { color: #616e7c; }
.map th:first-child { text-align: right; padding-right: .5rem; font-size: .8rem; }
.sample { margin: 0 0 1rem; border-left: 3px solid #c9d6e2; padding-left: .8rem; }
.sample div { display: flex; gap: .6rem; }
.sample b { flex: 0 0 5.2rem; font-weight: normal; color: #616e7c; font-size: .8rem; line-height: 1.8; }
.problem { color: #a03020; }
]]

local ENTITIES = { ['&'] = '&amp;', ['<'] = '&lt;', ['>'] = '&gt;', ['"'] = '&quot;' }
local function escape(value) return (tostring(value):gsub('[&<>"]', ENTITIES)) end

--- A table of texts; rows from `means` on are set off.
local function plain_table(heading, rows, means)
  local out = { '<div class="wide"><table class="plain">\n<tr>' }
  for _, cell in ipairs(heading) do out[#out + 1] = '<th>' .. escape(cell) .. '</th>' end
  out[#out + 1] = '</tr>\n'
  for r, row in ipairs(rows) do
    out[#out + 1] = means and r >= means and '<tr class="mean">' or '<tr>'
    for _, cell in ipairs(row) do out[#out + 1] = '<td>' .. escape(cell) .. '</td>' end
    out[#out + 1] = '</tr>\n'
  end
  out[#out + 1] = '</table></div>\n'
  return table.concat(out)
end

local function config_section(config)
  local names, out = {}, { '<h2>Configuration</h2>\n<dl class="config">\n' }
  for name in pairs(config) do names[#names + 1] = tostring(name) end
  table.sort(names)
  for _, name in ipairs(names) do
    out[#out + 1] = ('<div><dt>%s</dt><dd>%s</dd></div>\n'):format(escape(name), escape(config[name]))
  end
  out[#out + 1] = '</dl>\n'
  return table.concat(out)
end

local function score_section(rows)
  local heading, lines = scores.cells(rows)
  local out, seen = { '<h2>Translation quality</h2>\n', plain_table(heading, lines, #rows + 1) }, {}
  for _, row in ipairs(rows) do
    for _, signature in ipairs { 'BLEU|' .. row.signature, 'chrF2|' .. row.chrf_signature } do
      if not seen[signature] then
        out[#out + 1] = ('<div class="signature">%s</div>\n'):format(escape(signature))
      end
      seen[signature] = true
    end
  end
  return table.concat(out)
end

local function curve_section(curves)
  local out = { '<h2>Training</h2>\n' }
  if not gnuplot.installed() then
    out[#out + 1] = ('<p class="problem">No curves: %s.</p>\n'):format(escape(gnuplot.MISSING))
    return table.concat(out)
  end
  out[#out + 1] = '<div class="curves">\n'
  for _, curve in ipairs(curves) do
    local svg = gnuplot.curve {
      kind = 'svg', series = curve.series, title = curve.title, xlabel = curve.xlabel, ylabel = curve.ylabel,
      log_y = curve.log_y, width = 480, height = 260,
    }
    svg = svg:match '<svg.*':gsub('<title>.-</title>', '') -- no file's prologue, no tooltips
    out[#out + 1] = '<div>' .. svg .. '</div>\n'
  end
  out[#out + 1] = '</div>\n'
  return table.concat(out)
end

local WITH_NUMBERS = 24 -- columns up to which cells have room for their number

local function heat_map(opts)
  local map, small = grid.prepare('report', opts), #opts.cols > WITH_NUMBERS
  local out = { ('<div class="wide"><h3>%s</h3>\n<table class="map%s">\n<tr><th></th>'):format(
    escape(opts.title or ''), small and ' small' or '') }
  for c, label in ipairs(opts.cols) do
    out[#out + 1] = '<th>' .. ((not small or (c - 1) % 5 == 0) and escape(label) or '') .. '</th>'
  end
  out[#out + 1] = '</tr>\n'
  for r, label in ipairs(opts.rows) do
    out[#out + 1] = ('<tr><th>%s</th>'):format(escape(label))
    for c, column in ipairs(opts.cols) do
      local value = map.values[r][c]
      local red, green, blue = palette.at(palette.light, map.finite(value) and value / map.max or 0)
      local ink = palette.is_bright(red, green, blue) and '1f2933' or 'ffffff'
      local text = map.text(value)
      out[#out + 1] = ('<td style="background:#%02x%02x%02x;color:#%s" title="%s, %s: %s">%s</td>'):format(
        red, green, blue, ink, escape(label), escape(column), escape(text), small and '' or escape(text))
    end
    out[#out + 1] = '</tr>\n'
  end
  local low, high = grid.ends(opts, map.max)
  out[#out + 1] = ('</table>\n<div class="key">%s to %s</div></div>\n'):format(low, high)
  return table.concat(out)
end

local function map_section(maps)
  local out = { '<h2>Expert utilisation</h2>\n<div class="maps">\n' }
  for _, map in ipairs(maps) do out[#out + 1] = heat_map(map) end
  out[#out + 1] = '</div>\n'
  return table.concat(out)
end

local function sample_section(samples)
  local out = { '<h2>Sample translations</h2>\n' }
  for _, sample in ipairs(samples) do
    out[#out + 1] = ('<div class="sample"><h3>%s</h3>\n'):format(escape(sample.direction or ''))
    for _, side in ipairs { 'source', 'hypothesis', 'reference' } do
      if sample[side] then
        out[#out + 1] = ('<div><b>%s</b><span dir="auto">%s</span></div>\n'):format(
          side, escape(sample[side]))
      end
    end
    out[#out + 1] = '</div>\n'
  end
  return table.concat(out)
end

local WANTED = {
  out = 'string', title = 'string?', about = 'string?', config = 'table?', curves = 'table?',
  scores = 'table?',
  heatmaps = 'table?', tables = 'table?', samples = 'table?',
}

--- Writes the page; parts that are not given, or are empty, are left out.
---@param opts table
---  out: path of the page; about: a sentence under the title; config: name -> value;
---  curves: as `viz.curve` takes them, or `viz.training_curves(log.read_jsonl(path))`;
---  scores: rows of `metrics.evaluate`; heatmaps: as `viz.heatmap` takes them;
---  tables: `{ title = …, heading = texts, rows = lists of texts, rule = rows before the means? }`, set first;
---  samples: `{ direction = …, source = …, hypothesis = …, reference = … }`
local function report(opts)
  options.check('report', opts, WANTED)
  local title = opts.title or 'Lumoe'
  local page = {
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
    '<meta name="viewport" content="width=device-width">\n<title>', escape(title),
    '</title>\n<style>\n', STYLE,
    '</style>\n</head>\n<body>\n<h1>', escape(title), '</h1>\n',
  }
  local function add(part) page[#page + 1] = part end
  local function given(name) return opts[name] and next(opts[name]) ~= nil end
  if opts.about then add('<p class="about">' .. escape(opts.about) .. '</p>\n') end
  for _, extra in ipairs(opts.tables or {}) do
    add('<h2>' .. escape(extra.title or '') .. '</h2>\n' .. plain_table(extra.heading, extra.rows, extra.rule and extra.rule + 1))
  end
  if given 'scores' then add(score_section(opts.scores)) end
  if given 'curves' then add(curve_section(opts.curves)) end
  if given 'heatmaps' then add(map_section(opts.heatmaps)) end
  if given 'samples' then add(sample_section(opts.samples)) end
  if given 'config' then add(config_section(opts.config)) end
  add '</body>\n</html>\n'

  local aside = opts.out .. '.part'
  local file, message = io.open(aside, 'w')
  if not file then options.raise('report', '%s', message) end
  assert(file:write(table.concat(page)))
  assert(file:close())
  assert(os.rename(aside, opts.out))
end

return report
