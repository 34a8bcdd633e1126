--- Scores of translations, and the table they end in. Pure Lua: plain tables in, plain tables out.
local scores = require 'lumoe.metrics.scores'

return {
  bleu = require 'lumoe.metrics.bleu',
  chrf = require 'lumoe.metrics.chrf',
  tokenizer_for = require('lumoe.metrics.tokenize').for_language,
  evaluate = scores.evaluate,
  means = scores.means,
  table = scores.table,
  align = require 'lumoe.metrics.align',
  write_scores = scores.write,
}
