--- Loads a checkpoint into a model under any layout of ranks: each rank reads the part that it holds.
-- Everything is checked, checksums too, before the first number is written: after an error the model is as it was.
local autograd = require 'lumoe.autograd'
local layout = require 'lumoe.checkpoint.layout'
local random = require 'lumoe.random'
local ranks = require 'lumoe.checkpoint.ranks'
local source = require 'lumoe.checkpoint.source'

local WANTED = { model = 'table?', optimizer = 'table?' }
local SHOWN = 8 -- faults that one message lists

-- Adds to `faults` what does not fit between the tensors wanted, of which every rank holds some part, and those
-- there. stands_for(name): what is read instead of a tensor that may be missing.
local function compare(held, from, is_ours, stands_for, faults)
  local wanted = {}
  for _, h in ipairs(held) do
    local name, there = h.name, from.tensors[stands_for(h.name)]
    wanted[name] = true
    if not there then faults[#faults + 1] = name .. ' is missing'
    elseif source.shape_text(there.shape) ~= source.shape_text(h.region.shape) then
      faults[#faults + 1] = ('%s is %s, the model wants %s'):format(name, source.shape_text(there.shape),
        source.shape_text(h.region.shape))
    end
  end
  for name in pairs(from.tensors) do
    if is_ours(name) and not wanted[name] then faults[#faults + 1] = name .. ' is not in the model' end
  end
end

local function raise_faults(path, faults)
  if #faults == 0 then return end
  table.sort(faults)
  local more = #faults > SHOWN and ('; and %d more'):format(#faults - SHOWN) or ''
  error(('%s does not fit: %s%s'):format(path, table.concat(faults, '; ', 1, math.min(#faults, SHOWN)), more), 0)
end

-- Reads to do: { name in the source, holding }.
local function jobs_for(held, stands_for)
  local jobs = {}
  for i, h in ipairs(held) do jobs[i] = { name = stands_for(h.name), holding = h } end
  return jobs
end

local function is_optimizer(name) return name:match '^optimizer%.' ~= nil end

-- An f32 parameter that was trained as bf16 goes on from its f32 master.
local function parameters(model, from, resuming, faults)
  local held = layout.of_model(model)
  local dtype = {}
  for _, h in ipairs(held) do dtype[h.name] = h.dtype end
  local function stands_for(name)
    local master = ('optimizer.%s.master'):format(name)
    return resuming and dtype[name] == 'f32' and from.tensors[master] and master or name
  end
  local in_optimizer = from.index and is_optimizer or function() return false end
  compare(held, from, function(name) return not in_optimizer(name) end, stands_for, faults)
  return jobs_for(held, stands_for)
end

-- A master that the checkpoint lacks is the parameter itself, at the precision it was saved in. Without
-- any optimizer's state in the checkpoint, the rest starts from zero.
local function state(optimizer, from, faults)
  local held, fresh = layout.of_optimizer(optimizer), {}
  local saved = from.index and from.index.optimizer
  if saved and saved.kind ~= optimizer.kind then
    error(('%s holds the state of %s, not of %s'):format(from.path, tostring(saved.kind), optimizer.kind), 0)
  end
  local parameter = {}
  for _, h in ipairs(held) do
    if h.slot == 'master' then parameter[h.name] = h.parameter end
  end
  local function stands_for(name) return not from.tensors[name] and parameter[name] or name end
  if not saved then
    local masters = {}
    for _, h in ipairs(held) do table.insert(h.slot == 'master' and masters or fresh, h) end
    held = masters
  end
  compare(held, from, function(name)
    return saved and is_optimizer(name) and not name:match '%.master$'
  end, stands_for, faults)
  return jobs_for(held, stands_for), fresh
end

local function plan(path, opts, from)
  local faults, jobs, fresh = {}, {}, {}
  if opts.model then jobs = parameters(opts.model, from, opts.optimizer ~= nil, faults) end
  if opts.optimizer then
    local more
    more, fresh = state(opts.optimizer, from, faults)
    for _, job in ipairs(more) do jobs[#jobs + 1] = job end
  end
  raise_faults(path, faults)
  return jobs, fresh
end

-- f(t) on the elements of a holding.
local function change(h, f)
  autograd.scope(autograd.no_grad, function()
    local t = h.take()
    f(t)
    if h.give then h.give(t) end
  end)
end

local function fill(opts, from, jobs, fresh)
  for _, job in ipairs(jobs) do
    change(job.holding, function(t) from:read(job.name, t, job.holding.region) end)
  end
  for _, h in ipairs(fresh) do change(h, function(t) t:zero_() end) end
  local index = from.index or {}
  if opts.optimizer then
    opts.optimizer.steps = index.optimizer and index.optimizer.steps or 0
    if index.random then
      random.manual_seed(index.random.seed)
      random.step(index.random.step)
    end
  end
end

local function load(path, opts)
  opts = opts or {}
  local from = ranks.together(source.open, path)
  local jobs, fresh = plan(path, opts, from) -- alike on all ranks
  ranks.together(function()
    for _, job in ipairs(jobs) do from:verify(job.name, job.holding.region) end
  end)
  ranks.together(fill, opts, from, jobs, fresh)
  from:close()
  local index = from.index or {}
  return { step = index.step, extra = index.extra or {}, score = index.score, random = index.random,
    optimizer = opts.optimizer and (index.optimizer and 'loaded' or 'fresh') or nil }
end

local public = ranks.public('checkpoint.load', load, WANTED)

return function(path, opts) return public(path, opts or {}) end
