--- Lumoe: tensors with autograd, Mixture-of-Experts layers and parallel groups for LuaJIT.
-- `lumoe.nn`, `lumoe.moe` and the other modules load when first named.
local C = require 'lumoe.ffi'
local tensor = require 'lumoe.tensor'
local autograd = require 'lumoe.autograd'
local status = require 'lumoe.status'
require 'lumoe.functional'
local random = require 'lumoe.random'

local lumoe = {}

for _, name in ipairs { 'tensor', 'from', 'zeros', 'ones', 'full', 'empty', 'arange', 'cat', 'stack', 'where',
  'is_tensor' } do
  lumoe[name] = tensor[name]
end
for _, name in ipairs { 'no_grad', 'custom', 'scope', 'keep' } do lumoe[name] = autograd[name] end
for _, name in ipairs { 'rand', 'randn', 'manual_seed' } do lumoe[name] = random[name] end

lumoe.refuse = status.refuse

local PURPOSES = { 'activations', 'parameters', 'gradients', 'optimizer', 'exchange' }

--- Bytes by purpose, in use now and at most: { live = {total=, parameters=, …}, peak = {…}, pooled = , limit = }.
function lumoe.memory()
  local report = { live = { total = C.lm_memory_live(-1) }, peak = { total = C.lm_memory_peak(-1) },
    pooled = C.lm_memory_pooled(), limit = C.lm_memory_limit() }
  for i, name in ipairs(PURPOSES) do
    report.live[name], report.peak[name] = C.lm_memory_live(i - 1), C.lm_memory_peak(i - 1)
  end
  return report
end

--- At most so many bytes may be live on this device; 0 lifts the limit. Over it: a "no memory" error. Option soft: no
-- error; but what is under way or read ahead gives way, as it does at a limit.
---@param opts { soft?: boolean }?
function lumoe.memory_limit(bytes, opts)
  if type(bytes) ~= 'number' or bytes < 0 or bytes ~= bytes then
    status.argument('memory_limit: wants a number of bytes, not %s', tostring(bytes))
  end
  opts = tensor.options(opts, { soft = true }, 'memory_limit')
  if opts.soft then C.lm_memory_set_soft_limit(bytes) else C.lm_memory_set_limit(bytes) end
end
function lumoe.reset_peak_memory() C.lm_memory_reset_peak() end

--- Threads that kernels use; with an argument, sets them.
function lumoe.threads(n)
  if n ~= nil and (type(n) ~= 'number' or n < 1 or n % 1 ~= 0) then
    status.argument('threads: wants a whole number from 1, not %s', tostring(n))
  end
  if n then C.lm_set_threads(n) end
  return C.lm_threads()
end

--- Whether this CPU multiplies bf16 itself; otherwise bf16 costs more than f32.
function lumoe.has_bf16() return C.lm_has_bf16() == 1 end

local MODULES = {}
for name in ('nn moe dist optim data text metrics log viz checkpoint estimate'):gmatch '%S+' do MODULES[name] = true end

return setmetatable(lumoe, {
  __index = function(self, name)
    if not MODULES[name] then return nil end
    local module = require('lumoe.' .. name)
    rawset(self, name, module)
    return module
  end,
})
