--- Modules: named parameters, submodules, and a forward.
--
--     local Scale = nn.class 'Scale'
--     function Scale:init(opts) nn.parameter(self, 'weight', { opts[1] }, { init = 'ones' }) end
--     function Scale:forward(x) return x * self.weight end
--     local scale = Scale { 512 };  local y = scale(x)
--
-- Whatever a module's fields hold is found by walking them: modules, and plain tables of modules. A
-- parameter's name is its path in Lua, `encoder.1.attention.query.weight`. Parameters are visited in
-- the sorted order of their names, on every rank alike. A module keeps nothing between two calls, so
-- it can be used twice in one forward.
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local handle = require 'lumoe.handle'
local placement = require 'lumoe.dist.placement'
local random = require 'lumoe.random'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local PARAMETERS_BOOK = C.LM_MEM_PARAMETERS

---@class lumoe.Module
local Module = {}
local module = { Module = Module }

-- ---- sizes that are known later -------------------------------------------------------------

local Symbol = {}
Symbol.__index = Symbol
function Symbol:__tostring() return self.name end

--- A size with a name instead of a number; `module:bind(symbol, n)` makes the parameters that have it.
function module.symbol(name) return setmetatable({ name = name }, Symbol) end

local function is_symbol(x) return getmetatable(x) == Symbol end

-- ---- parameters -----------------------------------------------------------------------------

local INITS = {
  zeros = function(t) t:zero_() end,
  ones = function(t) t:fill_(1) end,
  normal = function(t, spec, stream, rows) random.fill(t, true, 0, spec.std, stream, rows) end,
  uniform = function(t, spec, stream, rows) random.fill(t, false, -spec.bound, spec.bound, stream, rows) end,
}

-- Draws a contiguous tensor by the numbers of its elements in the whole: a part is the same part of the
-- whole drawn by one process.
local function fill(t, spec, stream)
  local unit, rows = placement.blocks(spec)
  if not rows then return INITS[spec.init](t, spec, stream) end
  INITS[spec.init](t:reshape(rows:numel(), unit), spec, stream, rows)
end

local function draw(self, name, site)
  local spec, t = self._parameters[name], self[name]
  local stream = C.lm_random_stream(site, 0, 1)
  if t.dtype == 'bf16' then -- drawn in f32, so that both precisions start from the same weights
    autograd.scope(function()
      local wide = tensor.empty(t:shape_table())
      fill(wide, spec, stream)
      t:copy_(wide)
    end)
  else
    fill(t, spec, stream)
  end
end

-- How parameters to come are made: their dtype; later: without bytes and numbers, until they are drawn.
local birth = { dtype = 'f32', later = false }

local function with_birth(changed, f, ...)
  local before = birth
  birth = changed
  local function done(ok, ...)
    birth = before
    if not ok then error((...), 0) end
    return ...
  end
  return done(xpcall(f, function(message) return message end, ...))
end

--- Runs f(...), in which new parameters are of this dtype from the start (vectors, and those declared f32, stay
-- f32): the same model as after `to`, without ever taking the memory of f32.
function module.as(dtype, f, ...) return with_birth({ dtype = dtype, later = birth.later }, f, ...) end

--- Runs f(...), in which new parameters take no memory: dist.shard draws each, by its path as `initialize` does,
-- and moves it to where it belongs, one after the other. So a model is made that fits on all ranks, or in a
-- tier, but not here.
function module.later(f, ...) return with_birth({ dtype = birth.dtype, later = true }, f, ...) end

--- Draws a parameter that `later` left without numbers. p: an entry of named_parameters().
function module.draw(p)
  if not p.spec.undrawn then return end
  status.check(C.lm_tensor_load(handle.pointer(p.tensor)))
  autograd.no_grad(draw, p.module, p.key, p.name)
  p.spec.undrawn = nil
end

local function materialize(self, name)
  local spec = self._parameters[name]
  spec.shape = placement.shape(spec.whole, spec.at)
  for _, size in ipairs(spec.shape) do
    if is_symbol(size) then return end
  end
  local before = C.lm_memory_set_purpose(PARAMETERS_BOOK)
  local ok, made = pcall(tensor.empty, spec.shape, { dtype = spec.f32 and 'f32' or birth.dtype })
  C.lm_memory_set_purpose(before)
  if not ok then error(made, 0) end
  self[name] = autograd.keep(made)
  self[name].requires_grad = true
  spec.undrawn = birth.later or nil
  if spec.undrawn then status.check(C.lm_tensor_unload(handle.pointer(made)))
  else autograd.no_grad(draw, self, name, ('%s.%s'):format(self._class.name, name)) end
end

local OPTIONS = { init = true, std = true, bound = true, at = true, mesh = true, group = true, f32 = true }

--- Gives a module a parameter. Options:
--   init   'zeros' | 'ones' | 'normal' (with std) | 'uniform' (with bound; in [-bound, bound])
--   f32    stays f32 when the module becomes bf16 (vectors always do)
--   group  'dense' (default) or 'expert': over which ranks its gradient is summed
--   mesh   the dist.mesh it lies on; by default that of the model it is in
--   at     { [dim] = { {first, count}, ... } }: the ranges of the shape that this rank holds (dist/placement.lua)
-- shape is that of the whole, over all ranks. A size may be a symbol: then the parameter is made by `bind`.
function module.parameter(owner, name, shape, opts)
  opts = tensor.options(opts, OPTIONS, 'nn.parameter')
  local spec = { whole = shape, at = opts.at, mesh = opts.mesh, group = opts.group or 'dense',
    init = opts.init or 'zeros', std = opts.std, bound = opts.bound, f32 = opts.f32 or #shape < 2 }
  if not INITS[spec.init] then status.argument("nn.parameter: no init '%s'", tostring(spec.init)) end
  if spec.init == 'normal' and not spec.std then status.argument 'nn.parameter: normal wants std' end
  if spec.init == 'uniform' and not spec.bound then status.argument 'nn.parameter: uniform wants bound' end
  owner._parameters[name] = spec
  materialize(owner, name)
  return owner[name]
end

--- Gives a module a tensor that no gradient trains but that state and checkpoints hold (the bias of a router, say).
function module.buffer(owner, name, t)
  owner._buffers = owner._buffers or {}
  owner._buffers[name] = true
  owner[name] = autograd.keep(t)
  return t
end

-- ---- classes --------------------------------------------------------------------------------

function module.is_module(x) return type(x) == 'table' and getmetatable(x) ~= nil and getmetatable(x).is_module == true end

--- A new kind of module: define `init(self, ...)` and `forward(self, ...)` on it, call it to make one.
function module.class(name)
  local class = { name = name, is_module = true }
  class.__index = function(_, key)
    local value = class[key]
    if value == nil then value = Module[key] end
    return value
  end
  class.__call = function(self, ...) return self:forward(...) end
  class.__tostring = function(self) return self:describe() end
  return setmetatable(class, {
    __call = function(_, ...)
      local self = setmetatable({ _class = class, _parameters = {}, training = true }, class)
      if class.init then class.init(self, ...) end
      return self
    end,
  })
end

-- ---- walking --------------------------------------------------------------------------------

local function by_key(a, b)
  if type(a) == type(b) then return a < b end
  return type(a) == 'number'
end

local UNDERSCORE = ('_'):byte()

-- Where a walk goes on from a table.
local function sorted_keys(t)
  local keys = {}
  for key, value in pairs(t) do
    if type(value) == 'table' and (type(key) == 'number' or (type(key) == 'string' and key:byte() ~= UNDERSCORE)) then
      keys[#keys + 1] = key
    end
  end
  if #keys > 1 then table.sort(keys, by_key) end
  return keys
end

local function join(prefix, key) return prefix == '' and tostring(key) or prefix .. '.' .. key end

local function walk(value, path, list, seen)
  if type(value) ~= 'table' or seen[value] then return end
  local here = module.is_module(value)
  if not here and getmetatable(value) ~= nil then return end
  seen[value] = true
  if here then list[#list + 1] = { path, value } end
  for _, key in ipairs(sorted_keys(value)) do walk(value[key], join(path, key), list, seen) end
end

--- {name, module} of this module and all inside it, in order; a module reached twice counts once.
function Module:named_modules()
  local list = {}
  walk(self, '', list, {})
  return list
end

local function by_name(a, b) return a.name < b.name end

--- A list of { name =, tensor =, spec =, mesh =, module =, key = } sorted by name; mesh is the one it lies
-- on (dist/placement.lua). A tensor shared by two modules appears once, under the first name.
function Module:named_parameters()
  local list, seen, unique = {}, {}, {}
  for _, entry in ipairs(self:named_modules()) do
    local path, m = entry[1], entry[2]
    for key, spec in pairs(m._parameters) do
      if m[key] == nil then
        status.argument("parameter '%s' has a size that is not bound yet", join(path, key))
      end
      list[#list + 1] = { name = join(path, key), tensor = m[key], spec = spec, module = m, key = key }
    end
  end
  table.sort(list, by_name)
  for _, p in ipairs(list) do
    local id = p.tensor:id()
    if not seen[id] then seen[id], unique[#unique + 1] = true, p end
  end
  placement.resolve(unique)
  return unique
end

--- The same of the buffers: { name =, tensor =, module =, key = }.
function Module:named_buffers()
  local list = {}
  for _, entry in ipairs(self:named_modules()) do
    for key in pairs(entry[2]._buffers or {}) do
      list[#list + 1] = { name = join(entry[1], key), tensor = entry[2][key], module = entry[2], key = key }
    end
  end
  table.sort(list, by_name)
  return list
end

--- The parameters' tensors, sorted by name.
function Module:parameters()
  local list = {}
  for i, p in ipairs(self:named_parameters()) do list[i] = p.tensor end
  return list
end

--- How many numbers its parameters hold on this rank.
function Module:numel()
  local n = 0
  for _, p in ipairs(self:named_parameters()) do n = n + p.tensor:numel() end
  return n
end

function Module:apply(f)
  for _, entry in ipairs(self:named_modules()) do f(entry[2], entry[1]) end
  return self
end

--- Makes the parameters that waited for `symbol`.
function Module:bind(symbol, n)
  return self:apply(function(m)
    m._sizes = m._sizes or {}
    m._sizes[symbol] = n
    for key, spec in pairs(m._parameters) do
      local waited = false
      for i, size in ipairs(spec.whole) do
        if size == symbol then spec.whole[i], waited = n, true end
      end
      if waited then materialize(m, key) end
    end
  end)
end

--- Draws all weights anew, each by (seed, its path, element): the same on any layout. Those that are to be drawn
-- later are drawn later.
function Module:initialize()
  autograd.no_grad(function()
    for _, entry in ipairs(self:named_modules()) do
      local path, m = entry[1], entry[2]
      for key, spec in pairs(m._parameters) do
        if not spec.undrawn then draw(m, key, join(path, key)) end
      end
    end
  end)
  return self:named_paths()
end

--- Tells every module its path (sites of random draws, names in statistics).
function Module:named_paths()
  for _, entry in ipairs(self:named_modules()) do entry[2]._path = entry[1] end
  return self
end

function Module:path() return self._path or self._class.name end

-- ---- state ----------------------------------------------------------------------------------

--- Dropout, noise and capacity factors follow `training`.
function Module:train(on)
  on = on ~= false
  return self:apply(function(m) m.training = on end)
end
function Module:eval() return self:train(false) end

--- Parameters become f32 or bf16; vectors, and those declared f32, stay f32.
function Module:to(dtype)
  autograd.no_grad(function()
    local before = C.lm_memory_set_purpose(PARAMETERS_BOOK)
    for _, p in ipairs(self:named_parameters()) do
      if not p.spec.f32 then p.tensor:set_data(p.tensor:to(dtype)) end
    end
    C.lm_memory_set_purpose(before)
  end)
  return self
end

function Module:zero_grad()
  for _, p in ipairs(self:parameters()) do p.grad = nil end
end

-- Parameters, then buffers.
local function saved(self)
  local list = self:named_parameters()
  for _, b in ipairs(self:named_buffers()) do list[#list + 1] = b end
  return list
end

--- name -> tensor, of parameters and buffers.
function Module:state()
  local state = {}
  for _, p in ipairs(saved(self)) do state[p.name] = p.tensor end
  return state
end

--- Copies from name -> tensor. Missing, unexpected and misshapen names are errors, all at once.
function Module:load_state(state)
  local wrong, known = {}, {}
  for _, p in ipairs(saved(self)) do
    known[p.name] = true
    local from = state[p.name]
    if not from then wrong[#wrong + 1] = p.name .. ' is missing'
    elseif tensor.describe(from):match '%[.*%]' ~= tensor.describe(p.tensor):match '%[.*%]' then
      wrong[#wrong + 1] = ('%s is %s, wants %s'):format(p.name, tensor.describe(from), tensor.describe(p.tensor))
    end
  end
  for name in pairs(state) do
    if not known[name] then wrong[#wrong + 1] = name .. ' is not in the model' end
  end
  table.sort(wrong)
  if #wrong > 0 then status.argument('load_state: %s', table.concat(wrong, '; ', 1, math.min(#wrong, 8))) end
  autograd.no_grad(function()
    for _, p in ipairs(saved(self)) do p.tensor:copy_(state[p.name]) end
  end)
  return self
end

function Module:describe()
  local lines = {}
  for _, entry in ipairs(self:named_modules()) do
    local path, m = entry[1], entry[2]
    local shapes, keys = {}, {}
    for key in pairs(m._parameters) do keys[#keys + 1] = key end
    table.sort(keys)
    for _, key in ipairs(keys) do
      shapes[#shapes + 1] = key .. ' ' .. (m[key] and tensor.describe(m[key]) or 'not bound')
    end
    local depth = path == '' and 0 or select(2, path:gsub('%.', '')) + 1
    lines[#lines + 1] = ('%s%s%s%s'):format(('  '):rep(depth), path == '' and '' or path:match '[^.]*$' .. ': ',
      m._class.name, #shapes > 0 and ' (' .. table.concat(shapes, ', ') .. ')' or '')
  end
  return table.concat(lines, '\n')
end

return module
