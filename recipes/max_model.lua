--- The largest model that can be trained in a given memory: how far experts, tensor parallelism, ZeRO and offload
-- go, each measured with real steps (forward, backward, clipping, AdamW) and held against the planner.
--
--   ./lumoe -np 2 recipes/max_model.lua --limit 256MiB --json max_model.json
--   ./lumoe -np 4 recipes/max_model.lua --modes EP+DP,EP+ZeRO-3 --limit 64MiB
--
-- What grows is the number of experts of each layer. Parameters and activations are bf16; gradients, AdamW's two
-- moments and the masters f32. Memory is that of lumoe.memory on the rank that has most of it in use.
local lumoe = require 'lumoe'
local figures = require 'recipes.figures'
local modes = require 'recipes.max_model.modes'
local options = require 'recipes.max_model.options'
local search = require 'recipes.max_model.search'
local trial = require 'recipes.max_model.trial'
local tablex = require 'pl.tablex'

local opts = options.parse(arg)
local write = figures(opts.json)
local ranks, lead = lumoe.dist.world_size(), lumoe.dist.rank() == 0

local function say(format, ...)
  if lead then print(format:format(...)) end
end

-- What the planner says the largest number of experts is, and the size of that model.
local function predict(layout)
  local experts, plan = lumoe.estimate.largest {
    limit = opts.limit, most = opts.most, precision = 'bf16',
    model = function(n) return trial.description(opts, n) end, mesh = trial.planned_mesh(layout, ranks),
    batch = { sequences = opts.sequences * ranks / (layout.tp or 1), source = opts.tokens },
  }
  return experts, plan and plan.parameters.total
end

local found = {} -- by layout: two modes may come to the same on so few ranks

-- The largest model of a mode: { mode, experts, params, predicted, peak, capped }; or { mode, why }.
local function largest(mode)
  local layout, why = modes.layout(mode, ranks, { dir = opts.offload_dir, bucket = opts.bucket })
  if not layout then return { mode = mode, why = why } end
  local key = tostring(lumoe.dist.mesh(layout))
  if not found[key] then
    local guess, predicted = predict(layout)
    local experts, peak, beyond = search.largest(function(n)
      local bytes = trial.peak(opts, layout, n)
      if lead then io.stderr:write(('%s: %d experts a layer take %.1f MiB\n'):format(mode, n, bytes / 2 ^ 20)) end
      return bytes
    end, opts.limit, math.max(1, guess), opts.most)
    found[key] = { experts = experts, peak = peak, predicted = predicted, capped = not beyond or nil }
    if experts then trial.within(opts, layout, experts) end -- again, under the limit itself
  end
  local r = tablex.copy(found[key])
  r.mode, r.params = mode, r.experts and trial.size(opts, r.experts)
  r.why = not r.experts and 'not even one expert a layer fits' or nil
  return r
end

say('largest model in %.4g MiB a rank, %d rank%s: %d layers, width %d, experts of %d, %d × %d tokens a rank', opts.limit / 2 ^ 20,
  ranks, ranks > 1 and 's' or '', opts.layers, opts.dim, opts.hidden, opts.sequences, opts.tokens)
say('bf16 parameters and activations; f32 gradients, moments and masters; ratio: to the parameters of %s', modes.BASE)
say('%-22s %8s %14s %14s %7s %9s', 'mode', 'experts', 'parameters', 'predicted', 'ratio', 'peak MiB')

local wanted = opts.modes or modes.names()
local base = tablex.find(wanted, modes.BASE) and largest(modes.BASE).params
local results = {}
for i, mode in ipairs(wanted) do
  local r = largest(mode)
  if r.why then say('%-22s %s', mode, r.why)
  else
    r.ratio = base and r.params / base
    say('%-22s %8d %14.0f %14.0f %7s %9.1f%s', mode, r.experts, r.params, r.predicted or 0 / 0,
      r.ratio and ('%.2f'):format(r.ratio) or '-', r.peak / 2 ^ 20, r.capped and '  (--most)' or '')
  end
  results[i] = r
end
write(results)
