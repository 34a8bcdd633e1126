--- Plans a run before it is started: what a model takes of each rank's memory, of each wire, of time.
--
--   ./lumoe recipes/estimate.lua --experts 64 --ranks 64 --ep 64 --hardware a100-40 --precision bf16
--   ./lumoe recipes/estimate.lua --paper              512 A100 and 3.5 trillion parameters (arXiv 2109.10465)
--   ./lumoe -np 2 recipes/estimate.lua --verify       the planner against the counters of real steps
--   ./lumoe -np 2 recipes/estimate.lua --times        its times beside those of real steps here
local lumoe = require 'lumoe'
local json = require 'lumoe.data.json'
local options = require 'recipes.estimate.options'
local report = require 'recipes.estimate.report'
local file = require 'pl.file'

local opts = options.parse(arg)
local lead = lumoe.dist.rank() == 0
local hardware = opts.hardware == 'here' and lumoe.estimate.here() or opts.hardware

local function save(results)
  if lead and opts.json then assert(file.write(opts.json, json.encode(results) .. '\n')) end
end

if opts.verify then
  local results, off = require('recipes.estimate.verify').run(opts)
  save(results)
  if off > 0 then os.exit(1) end
elseif opts.times then
  save(require('recipes.estimate.times').run(opts.only))
elseif opts.paper then
  save(require('recipes.estimate.paper').run(opts))
else
  local plan = lumoe.estimate { model = opts.model, mesh = opts.mesh, batch = opts.batch, precision = opts.precision,
    masters = opts.masters, moments = opts.moments, gradients = opts.gradients,
    recompute = opts.recompute, overlap = opts.overlap, hardware = hardware }
  if lead then report.print(plan) end
  save(report.figures(plan))
end
