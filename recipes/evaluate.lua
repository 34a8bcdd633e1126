--- Evaluates a checkpoint of recipes/translate.lua again.
--   ./lumoe recipes/evaluate.lua runs/translate/checkpoint-3000 --beam 8
local lumoe = require 'lumoe'
local parser = require 'recipes.parser'
local evaluation = require 'recipes.translate.evaluation'
local options = require 'recipes.translate.options'
local restore = require 'recipes.translate.restore'
local path = require 'pl.path'

local p = parser('lumoe recipes/evaluate.lua', 'Scores a translator: BLEU, chrF, use of the experts.')
p:argument('checkpoint', 'A checkpoint, or a folder with some (then the last)')
p:option('--beam', 'Beams; 1: greedy', '4'):convert(options.count(1, 64))
p:option('--test-sentences', 'Of each direction; 0: all', '0'):convert(options.count(0))
p:option('--out', 'Where test/, scores.json and report.html go', 'eval')
local opts = p:parse()

local model, data, saved = restore(opts.checkpoint)
saved.opts.beam, saved.opts.test_sentences = opts.beam, opts.test_sentences
local trained = path.dirname(path.normpath(saved.at))
evaluation.run(model, data, saved.opts, opts.out, {
  about = { checkpoint = saved.at, step = saved.step, parameters = (model:sizes()) },
  records = path.join(trained, 'metrics.jsonl'), step = saved.step,
})
lumoe.dist.barrier()
