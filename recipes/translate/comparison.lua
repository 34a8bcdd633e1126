--- The MoE model and its dense twin side by side: one table, one report.
local lumoe = require 'lumoe'
local path = require 'pl.path'
local metrics, viz = lumoe.metrics, lumoe.viz

local comparison = {}

local SCORES = { { 'bleu', 'BLEU' }, { 'chrf', 'chrF' }, { 'bleu_novel', 'novel' }, { 'bleu_novel_48', 'novel ≤48' } }

local function text(value) return value and ('%.2f'):format(value) or '-' end

-- A row for each direction and mean: every score of the one model, then of the other.
local function score_table(own, dense)
  local heading, rows = { 'direction' }, {}
  for _, score in ipairs(SCORES) do heading[#heading + 1], heading[#heading + 2] = score[2], 'dense' end
  local function add(ours, theirs)
    for i, row in ipairs(ours) do
      local cells = { row.direction }
      for _, score in ipairs(SCORES) do
        cells[#cells + 1], cells[#cells + 2] = text(row[score[1]]), text(theirs[i][score[1]])
      end
      rows[#rows + 1] = cells
    end
  end
  add(own.rows, dense.rows)
  local directions = #rows
  add(metrics.means(own.rows), metrics.means(dense.rows))
  return { title = 'MoE, and its dense twin on the same tokens', heading = heading, rows = rows, rule = directions }
end

local function cost_row(name, about)
  local function millions(what) return ('%.2f M'):format(about[what] / 1e6) end
  return { name, millions 'parameters', millions 'active parameters', ('%d'):format(about.steps), millions 'tokens seen',
    ('%.1f'):format(about['training seconds'] / 60), ('%d'):format(about['tokens per second']) }
end

local function cost_table(own, dense)
  return { title = 'What they took', heading = { 'model', 'parameters', 'active', 'steps', 'tokens', 'minutes', 'tokens/s' },
    rows = { cost_row('MoE', own.about), cost_row('dense', dense.about) } }
end

--- Prints both together, and replaces the MoE model's report by one that has both.
---@param own table    of the MoE model, as evaluation.run returned it
---@param dense table  of its twin
---@param out string   the folder of the run
function comparison.run(own, dense, out)
  local scores, cost = score_table(own, dense), cost_table(own, dense)
  io.write '\n'
  for _, t in ipairs { scores, cost } do
    io.write(table.concat(metrics.align(t.heading, t.rows, t.rule), '\n'), '\n\n')
  end
  viz.report { out = path.join(out, 'report.html'), title = 'Translation, with and without experts', config = own.about,
    tables = { scores, cost }, scores = own.rows, heatmaps = own.heatmaps, samples = own.samples,
    curves = viz.training_curves { { name = 'MoE', records = own.records }, { name = 'dense', records = dense.records } } }
  io.write(('report: %s\n'):format(path.join(out, 'report.html')))
end

return comparison
