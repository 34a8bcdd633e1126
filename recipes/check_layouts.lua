--- Is it the same model under every layout? One batch on all ways to share it over the ranks, against one process.
--
--   ./lumoe -np 4 recipes/check_layouts.lua                       every layout of four ranks
--   ./lumoe -np 4 recipes/check_layouts.lua --only ep2 --steps 20 --top-k 1 --capacity 0
--   ./lumoe -np 4 recipes/check_layouts.lua --json layouts.json
--   ./lumoe -np 4 recipes/check_layouts.lua --same-as layouts.json      to the same bits as then
--
-- Ends with 1 when one is off. Your own model: dist.check_layouts, as below.
local lumoe = require 'lumoe'
local cjson = require 'cjson'
local options = require 'recipes.check_layouts.options'
local figures = require 'recipes.figures'
local LanguageModel = require 'recipes.check_layouts.model'
local utils = require 'pl.utils'
local dist = lumoe.dist

local opts = options.parse(arg)
local lead, size = dist.rank() == 0, dist.world_size()

-- layout -> bits of an earlier run; read first, as --json may name the same file.
local function earlier(file)
  local ok, rows = pcall(cjson.decode, utils.readfile(file) or lumoe.refuse('--same-as %s: cannot be read', file))
  if not ok or type(rows) ~= 'table' then lumoe.refuse('--same-as %s: not what --json writes', file) end
  local bits = {}
  for _, row in ipairs(rows) do bits[row.layout] = row.bits end
  return bits
end

local before, write = opts.same_as and earlier(opts.same_as), figures(opts.json)

io.stdout:setvbuf 'line'
local function say(format, ...)
  if lead then io.stdout:write(format:format(...), '\n') end
end

local function chosen()
  local list = {}
  for _, layout in ipairs(dist.layouts.list(size, opts.plain and {} or nil)) do
    if not opts.only or dist.layouts.name(layout, size):find(opts.only, 1, true) then list[#list + 1] = layout end
  end
  return list
end

local batches = {}

local report = dist.check_layouts {
  model = function(mesh, layout)
    local model = LanguageModel(opts, mesh, layout)
    if opts.one_expert then model:prefer_first_expert() end
    return model
  end,
  loss = function(model, part, micro, whole) return model:loss(part, micro, whole) end,
  batch = function(step)
    batches[step] = batches[step] or lumoe.keep(LanguageModel.batch(opts))
    return batches[step]
  end,
  layouts = chosen(), steps = opts.steps, seed = opts.seed, share = opts.idle_rank and LanguageModel.idle_first or nil,
  each = function(row, report)
    if #report.rows + #report.refused == 1 then say('%s', report.head()) end
    say('%s', report.line(row))
  end,
}

-- A row for JSON, which knows no number that is none.
local function plain(row)
  local copy = {}
  for name, value in pairs(row) do copy[name] = type(value) == 'number' and value - value ~= 0 and cjson.null or value end
  return copy
end

local list, other = {}, {}
for i, row in ipairs(report.rows) do
  list[i] = plain(row)
  if before and before[row.layout] ~= row.bits then other[#other + 1] = row.layout end
end
write(#list > 0 and list or cjson.empty_array)

local wrong = 0
for _, row in ipairs(report.rows) do wrong = wrong + (row.ok and 0 or 1) end
say('%d layouts of %d rank%s: %d the same as one process, %d not; %d not examined', #report.rows, size, size == 1 and '' or 's',
  #report.rows - wrong, wrong, #report.refused)
if opts.same_as then say('%d of them to other bits than in %s', #other, opts.same_as) end
for _, name in ipairs(other) do say('%s: other bits', name) end
dist.barrier()
os.exit(report.ok and #other == 0 and 0 or 1, true)
