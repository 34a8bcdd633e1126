--- Draws the curves of one training, or of several in one picture: in the terminal, or as a file.
--   ./lumoe recipes/curves.lua runs/translate
--   ./lumoe recipes/curves.lua moe=runs/a dense=runs/b --over tokens --out curves.svg
local lumoe = require 'lumoe'
local parser = require 'recipes.parser'
local path = require 'pl.path'

local p = parser('lumoe recipes/curves.lua', 'Draws the curves of trainings.')
p:argument('runs', 'Folders of runs (with metrics.jsonl), as DIR or NAME=DIR'):args '+'
p:option('--what', 'loss, valid_loss, tokens_per_s, dropped, lr or grad_norm', 'loss')
p:option('--over', 'step, tokens or minutes', 'step'):choices { 'step', 'tokens', 'minutes' }
p:option('--out', 'A file that ends in .svg, .png or .txt; else the terminal')
local opts = p:parse()

local runs = {}
for i, word in ipairs(opts.runs) do
  local name, dir = word:match '^([^=/]+)=(.+)$'
  dir = dir or word
  local file = path.join(dir, 'metrics.jsonl')
  if not path.isfile(file) then lumoe.refuse('%s: is not there; a run writes it in its --out folder', file) end
  runs[i] = { name = name or path.basename(path.normpath(dir)), records = lumoe.log.read_jsonl(file) }
end

local curve = lumoe.viz.training_curves(runs, opts.over)[opts.what]
if not curve then lumoe.refuse("--what %s: no such number in the runs' records", opts.what) end
curve.out = opts.out
local ok, picture = pcall(lumoe.viz.curve, curve)
if not ok then lumoe.refuse('%s', (picture:gsub('^.-: curve: ', ''))) end
io.write(picture or opts.out .. '\n')
