--- Pictures: heat maps in the terminal, curves through gnuplot, and a run's report as one HTML page.
return {
  heatmap = require 'lumoe.viz.heatmap',
  curve = require('lumoe.viz.gnuplot').curve,
  training_curves = require 'lumoe.viz.training',
  report = require 'lumoe.viz.report',
}
