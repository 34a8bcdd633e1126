--- One batch under every layout, against one process: a proof, for your own model, that they are the same.
--
--     local report = dist.check_layouts {
--       model = function(mesh, layout) return Model(mesh, layout.recompute) end,
--       loss = function(model, part, micro, whole)          -- this rank's part of the step's loss
--         return model:nll(part) / count(whole) end,
--       batch = { ids = ids, tags = { tokens = tokens } },  -- tensors whose dim 0 is the batch's
--     }
--     print(report);  os.exit(report.ok and 0 or 1)
--
-- The reference is the same model on a mesh of this rank alone, computed by every rank. The routes of all
-- MoE layers are compared first. Where a rounding flips one, the layout runs again with the reference's routes,
-- and is only accepted if at each of its flips the scores were less than 1e-5 apart.
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local compare = require 'lumoe.dist.compare'
local counters = require 'lumoe.dist.counters'
local gradients = require 'lumoe.dist.gradients'
local groups = require 'lumoe.dist.group'
local layouts = require 'lumoe.dist.layouts'
local mesh = require 'lumoe.dist.mesh'
local optim = require 'lumoe.optim'
local random = require 'lumoe.random'
local shard = require 'lumoe.dist.shard'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'
local trace = require 'lumoe.moe.trace'

local OPTIONS = { model = true, loss = true, batch = true, layouts = true, steps = true, optimizer = true, share = true,
  seed = true, each = true }

-- Relative differences that rounding may make, in f32.
local BOUND = { loss = 1e-6, norm = 1e-6, gradient = 1e-6, gradient_tp = 1e-5, steps = 1e-5, gap = 1e-5 }

-- ---- the batch -----------------------------------------------------------------------------

-- Rows first .. first + count - 1 of all tensors.
local function rows(batch, first, count)
  if tensor.is_tensor(batch) then return batch:narrow(0, first, count) end
  if type(batch) ~= 'table' then return batch end
  local part = {}
  for key, value in pairs(batch) do part[key] = rows(value, first, count) end
  return part
end

-- Dim 0 of the first tensor there is.
local function length(batch)
  if tensor.is_tensor(batch) then return batch:size(0) end
  for _, value in pairs(type(batch) == 'table' and batch or {}) do
    local n = length(value)
    if n then return n end
  end
end

-- ---- one layout ----------------------------------------------------------------------------

-- Bytes that this rank has sent so far.
local function sent()
  local bytes = 0
  for _, to in ipairs(counters.counters()) do bytes = bytes + to.bytes end
  return bytes
end

-- A model of this layout and its optimizer; memory and bytes count from here on.
local function start(check, on, layout)
  C.lm_memory_reset_peak()
  local self = { check = check, mesh = on, micro_batches = layout.micro_batches or 1, losses = {}, norms = {}, traces = {},
    before = C.lm_memory_live(-1), sent = sent() }
  random.manual_seed(check.seed)
  self.model = check.model(on, layout)
  self.model:initialize()
  self.model:train()
  for _, p in ipairs(self.model:named_parameters()) do p.spec.mesh = p.spec.mesh or on end
  if layout.zero or layout.overlap or layout.offload then shard.shard(self.model) end
  self.optimizer = check.optimizer(self.model:named_parameters())
  return self
end

-- Forward and backward of one step. Returns the loss over all ranks.
local function accumulate(self, number)
  local check, data, total = self.check, self.mesh.data, 0
  random.step(number)
  local whole = type(check.batch) == 'function' and check.batch(number) or check.batch
  local count = length(whole)
  for m = 0, self.micro_batches - 1 do
    autograd.scope(function()
      local from, n = groups.share(count, m, self.micro_batches)
      local micro = rows(whole, from, n)
      local part = rows(micro, check.share(n, data.rank, data.size))
      local loss = check.loss(self.model, part, micro, whole)
      loss:backward { last = m == self.micro_batches - 1 }
      total = total + loss:item()
    end)
  end
  return groups.reduce_number(total, 'sum', data)
end

local function step(self, number, routes)
  local written = trace()
  self.traces[number] = written
  self.losses[number] = written:record(function()
    if routes then return routes:replay(accumulate, self, number) end
    return accumulate(self, number)
  end)
  gradients.reduce_gradients(self.model)
  self.norms[number] = gradients.grad_norm(self.model)
end

-- All steps; `measure` sees the gradients of the first. The model is gone afterwards.
local function run(self, replayed, measure)
  local steps = self.check.steps
  for number = 1, steps do
    step(self, number, replayed and replayed[number])
    if number == 1 then
      self.bytes, self.peak = sent() - self.sent, C.lm_memory_peak(-1)
      measure(self)
      C.lm_memory_reset_peak()
    end
    if number < steps then self.optimizer:step {} end
    self.optimizer:zero_grad()
  end
  self.peak = math.max(self.peak, C.lm_memory_peak(-1)) - self.before
  self.model, self.optimizer = nil, nil
  collectgarbage()
  collectgarbage()
  return self
end

-- ---- against the reference -----------------------------------------------------------------

local function relative(got, want) return math.abs(got - want) / math.max(math.abs(want), 1e-30) end

local function worst_relative(got, want)
  local worst = 0
  for i, value in ipairs(want) do
    local rel = relative(got[i], value)
    if compare.exceeds(rel, worst) then worst = rel end
  end
  return worst
end

-- Whether every step's routes are the reference's.
local function same_routes(result, reference, group)
  for number, written in ipairs(result.traces) do
    if written:hash(group) ~= reference.traces[number]:hash() then return false end
  end
  return true
end

-- Routes that would have flipped while the reference's were replayed, over all ranks: how many, how near.
local function flips(reference, group)
  local count, gap = 0, 0
  for _, written in ipairs(reference.traces) do
    for _, flip in ipairs(written.flips) do
      count, gap = count + 1, math.max(gap, flip.gap)
    end
  end
  return groups.reduce_number(count, 'sum', group), groups.reduce_number(gap, 'max', group)
end

-- A row of the report.
local function row_of(name, layout, result, reference, group)
  local row = { layout = name, loss_rel = relative(result.losses[1], reference.losses[1]),
    norm_rel = relative(result.norms[1], reference.norms[1]), grad_rel = result.difference.rel,
    parameter = result.difference.parameter, steps_rel = worst_relative(result.losses, reference.losses),
    bits = result.bits, uneven = result.difference.uneven,
    bytes = groups.reduce_number(result.bytes, 'max', group), peak = groups.reduce_number(result.peak, 'max', group),
    faults = {} }
  local function fault(...) row.faults[#row.faults + 1] = (...):format(select(2, ...)) end
  local function bound(what, value, most)
    if compare.exceeds(value, most) then fault('%s is off by %.1e', what, value) end
  end
  bound('the loss', row.loss_rel, BOUND.loss)
  bound('the norm', row.norm_rel, BOUND.norm)
  bound('the gradient of ' .. (row.parameter or '?'), row.grad_rel,
    ((layout.tp or 1) > 1 or (layout.etp or 1) > 1) and BOUND.gradient_tp or BOUND.gradient)
  bound('a later loss', row.steps_rel, BOUND.steps)
  if result.difference.fault then fault('%s', result.difference.fault) end
  return row, fault
end

-- Runs one layout, once more with the reference's routes where some flipped.
local function examine(started, layout, name, reference)
  local check, on = started.check, started.mesh
  local group = on.tokens
  local function measure(self)
    self.difference = compare.gradients(self.model, reference.gradients, reference.norm, group)
    self.bits = compare.fingerprint(self.model, { self.losses[1], self.norms[1] }, group)
  end
  local result = run(started, nil, measure)
  local measured, flipped, gap = result, 0, 0
  if not same_routes(result, reference, group) then
    measured = run(start(check, on, layout), reference.traces, measure)
    measured.bytes, measured.peak = result.bytes, result.peak
    flipped, gap = flips(reference, group)
  end
  local row, fault = row_of(name, layout, measured, reference, group)
  row.flips, row.gap = flipped, gap
  if gap >= BOUND.gap then fault('%d routes differ, by scores up to %.1e apart', flipped, gap) end
  if measured ~= result and flipped == 0 then fault 'tokens are dropped that should stay, or the other way round' end
  row.ok = #row.faults == 0
  return row
end

-- One process alone, with as many micro-batches.
local function reference_of(check, layout)
  local alone = mesh { ranks = { groups.rank() } }
  return run(start(check, alone, { tp = 1, ep = 1, etp = 1, micro_batches = layout.micro_batches }), nil, function(self)
    self.gradients, self.norm = compare.reference(self.model)
  end)
end

-- The layout with its model made, or nil and why it cannot be. All ranks say the same.
local function try(check, layout)
  local ok, started = pcall(function()
    return start(check, mesh { tp = layout.tp, ep = layout.ep, etp = layout.etp, zero = layout.zero, offload = layout.offload },
      layout)
  end)
  local agreed, said = pcall(groups.agree, not ok and tostring(started) or nil)
  if agreed then return started end
  return nil, tostring(ok and said or started)
end

-- ---- the report ----------------------------------------------------------------------------

---@class lumoe.LayoutReport
---@field rows table[]  { layout, loss_rel, norm_rel, grad_rel, parameter, steps_rel, bytes, peak, flips, gap, bits, uneven?, ok,
---  faults }; bits: digits that change with any bit of the first step; uneven: see compare.lua
---@field refused table[]  { layout, why }: what the model or this release cannot do; not examined
---@field ok boolean    some were examined, and all are the same
local Report = {}
Report.__index = Report

local HEAD = ('%-56s %8s %8s %8s %10s %10s  %s'):format('layout', 'loss', 'norm', 'gradient', 'bytes', 'peak', 'worst of')

--- A row as a line of the table.
function Report.line(row)
  if row.why then return ('%-56s not examined: %s'):format(row.layout, row.why) end
  local line = ('%-56s %8.1e %8.1e %8.1e %10.0f %10.0f  %s'):format(row.layout, row.loss_rel, row.norm_rel, row.grad_rel,
    row.bytes, row.peak, row.parameter or '')
  if row.flips > 0 then line = ('%s  %d flips, gap %.0e'):format(line, row.flips, row.gap) end
  if row.uneven then line = ('%s  other bits on some ranks: %s'):format(line, row.uneven) end
  if not row.ok then line = line .. '  WRONG: ' .. table.concat(row.faults, '; ') end
  return line
end

function Report.head() return HEAD end

function Report:__tostring()
  local lines = { HEAD }
  for _, list in ipairs { self.rows, self.refused } do
    for _, row in ipairs(list) do lines[#lines + 1] = Report.line(row) end
  end
  return table.concat(lines, '\n')
end

local function checked(check)
  tensor.options(check, OPTIONS, 'check_layouts')
  for _, name in ipairs { 'model', 'loss', 'batch' } do
    if check[name] == nil then status.argument("check_layouts: option '%s' is missing", name) end
  end
  local all = setmetatable({ steps = check.steps or 1, seed = check.seed or 1, share = check.share or groups.share,
    optimizer = check.optimizer or function(params) return optim.AdamW(params, { lr = 1e-3 }) end }, { __index = check })
  return all
end

--- Options:
--   model      function(mesh, layout) -> module, made anew for each layout; layout.recompute asks for checkpointing
--   loss       function(model, part, micro, whole) -> this rank's part of the step's loss: `part` are this rank's
--              rows of the micro-batch, `micro` all of its rows, `whole` the step's
--   batch      a table of tensors (also in tables), or function(step) -> that
--   layouts    which; by default all that fit the ranks (dist.layouts)
--   steps      1; with more, the losses of all are compared too
--   optimizer  function(params) -> optimizer, for the steps; AdamW by default
--   share      function(rows, rank, size) -> first, count: how a batch is dealt out; dist.share by default
--   each       function(row, report): called after each layout, on all ranks
-- Collective: all ranks call it alike.
---@return lumoe.LayoutReport
return function(check)
  check = checked(check)
  local size = groups.world_size()
  local report = setmetatable({ rows = {}, refused = {}, ok = true }, Report)
  local references = {}
  for _, layout in ipairs(check.layouts or layouts.list(size)) do
    local name, micro = layouts.name(layout, size), layout.micro_batches or 1
    references[micro] = references[micro] or reference_of(check, { micro_batches = micro })
    local started, why = try(check, layout)
    local row
    if started then
      row = examine(started, layout, name, references[micro])
      report.rows[#report.rows + 1] = row
      report.ok = report.ok and row.ok
    else
      row = { layout = name, why = why }
      report.refused[#report.refused + 1] = row
    end
    if check.each then check.each(row, report) end
  end
  report.ok = report.ok and #report.rows > 0
  return report
end
