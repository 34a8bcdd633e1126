--- Random numbers keyed by what they are for (runtime/random.h): the same on any number of ranks.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local handle = require 'lumoe.handle'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local random = {}
local calls = {} -- site -> draws made there in this step

--- Starts all sequences anew.
function random.manual_seed(seed)
  if type(seed) ~= 'number' then status.argument('manual_seed: wants a number, not %s', type(seed)) end
  C.lm_random_seed(seed)
  random.step(0)
end

--- A step of training begins: every site counts its calls from 0 again.
function random.step(step)
  C.lm_random_set_step(step)
  calls = {}
end

--- Where all sequences are; `restore` makes the same draws follow again.
function random.state()
  local copy = {}
  for site, n in pairs(calls) do copy[site] = n end
  return { seed = C.lm_random_get_seed(), step = C.lm_random_step(), calls = copy }
end

--- Takes over what `state` gave, which can be restored again.
function random.restore(state)
  C.lm_random_seed(state.seed)
  C.lm_random_set_step(state.step)
  calls = {}
  for site, n in pairs(state.calls) do calls[site] = n end
end

local halves = ffi.new 'union { uint64_t whole; uint32_t part[2]; }' -- Lua's numbers hold 53 bits

--- The stream for the next draw at `site`, in two halves of 32 bits: high, low.
function random.stream(site)
  local call = calls[site] or 0
  calls[site] = call + 1
  halves.whole = C.lm_random_stream(site, call, 0)
  return halves.part[1], halves.part[0]
end

local OPTIONS = { dtype = true, requires_grad = true, site = true, rows = true }

local function draw(op, normal, a, b, ...)
  local n, opts = tensor.sizes(op, ...)
  local shape = {}
  opts = tensor.options(opts, OPTIONS, op)
  local first = ...
  for d = 1, n do shape[d] = type(first) == 'table' and first[d] or (select(d, ...)) end
  local t = tensor.empty(shape, { dtype = opts.dtype })
  local high, low = random.stream(opts.site or 'script')
  random.fill(t, normal, a, b, (0ULL + high) * 0x100000000ULL + low, opts.rows)
  if opts.requires_grad then t.requires_grad = true end
  return t
end

--- Fills t in place. rows: i64 ids of t's rows (its first dim).
function random.fill(t, normal, a, b, stream, rows)
  local dims = rows and t:dim() - 1 or t:dim()
  status.check(C.lm_random_fill(handle.pointer(t, 'random', 'self'), normal and 1 or 0, a, b, stream, dims, 0,
    rows and handle.pointer(rows, 'random', 'rows') or nil))
  return t
end

--- Uniform in [0, 1). Options: dtype, requires_grad, site = 'script', rows = i64 ids of the rows.
function random.rand(...) return draw('rand', false, 0, 1, ...) end
--- Standard normal.
function random.randn(...) return draw('randn', true, 0, 1, ...) end

return random
