--- Pictures: heat maps in the terminal, curves and bars through gnuplot, and a run's report as one HTML page.
return {
  heatmap = require 'lumoe.viz.heatmap',
  curve = require('lumoe.viz.gnuplot').curve,
  bars = require('lumoe.viz.gnuplot').bars,
  training_curves = require 'lumoe.viz.training',
  report = require 'lumoe.viz.report',
}
