--- Gradients of a model against those of another layout, each part where it lies.
--
-- The reference is held whole: name -> { values, count, squares }. A rank compares the elements it has, by
-- placement; then all ranks' sums are put together, an element that several ranks hold counting once, with
-- the worst of them.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local checked = require 'lumoe.dist.checked'
local offload = require 'lumoe.dist.offload'
local placement = require 'lumoe.dist.placement'
local shard = require 'lumoe.dist.shard'
local status = require 'lumoe.status'

local compare = {}

--- Whether a difference is over a bound, or no number.
function compare.exceeds(difference, bound) return difference > bound or difference ~= difference end

-- f32 elements of a tensor as an array of Lua's; nil counts as zeros.
local function values(t, count)
  local array = ffi.new('float[?]', math.max(count, 1))
  if t ~= nil and count > 0 then
    local dense = t:float():contiguous()
    ffi.copy(array, dense:data_ptr(), 4 * count)
  end
  return array
end

--- The gradients of a model that is whole on this rank, and their norm.
function compare.reference(model)
  local list, total = {}, 0
  for _, p in ipairs(model:named_parameters()) do
    local count, squares = p.tensor:numel(), 0
    local array = values(p.tensor.grad, count)
    for i = 0, count - 1 do squares = squares + array[i] * array[i] end
    list[p.name] = { values = array, count = count, squares = squares }
    total = total + squares
  end
  return list, math.sqrt(total)
end

-- What this rank holds of a gradient: all of the parameter that is here, or a flat chunk of that, in memory or
-- away. Its values, how many, and the number of the first among those here.
local function held(p)
  local range = shard.range(p.tensor)
  if not range then return values(p.tensor.grad, p.tensor:numel()), p.tensor:numel(), 0 end
  local gradient
  if offload.of(p) then gradient = offload.gradient(p) else gradient = shard.chunk(p.tensor).grad end
  return values(gradient, range[2]), range[2], range[1]
end

-- Calls f(value, number of the element in the whole) for each.
local function each_element(p, f)
  local array, count, first = held(p)
  local unit, blocks = placement.blocks(p.spec)
  local ids = unit and ffi.cast('const int64_t *', blocks:data_ptr())
  for i = 0, count - 1 do
    local at = first + i
    if unit then at = tonumber(ids[math.floor(at / unit)]) * unit + at % unit end
    f(array[i], at)
  end
end

-- The bits of a float, hashed into h.
local float = ffi.new 'union { float value; uint32_t bits; }'
local function mix(h, value)
  float.value = value
  return bit.bxor(h, float.bits) * 0x100000001b3ULL
end

local FIELDS = 6 -- of a parameter on a rank: squared difference, elements, two numbers that name them, two of their bits

-- This rank's numbers for every parameter.
local function measure(parameters, reference, out)
  for i, p in ipairs(parameters) do
    local want = reference[p.name]
    if not want then status.argument("check_layouts: the reference has no parameter '%s'", p.name) end
    local apart, n, sum, squares, bits = 0, 0, 0, 0, 0ULL
    each_element(p, function(value, at)
      local d = value - want.values[at]
      apart, n, sum, squares = apart + d * d, n + 1, sum + at, squares + at * at
      bits = mix(bits, value)
    end)
    local own = out + (i - 1) * FIELDS
    own[0], own[1], own[2], own[3] = apart, n, sum, squares
    own[4], own[5] = tonumber(bit.rshift(bits, 32)), tonumber(bit.band(bits, 0xffffffffULL))
  end
end

-- One parameter over all ranks: the squared difference, how many elements are there, whether all
-- holders of the same ones have the same.
local function together(all, ranks, stride, at)
  local seen, apart, elements, alike = {}, 0, 0, true
  for r = 0, ranks - 1 do
    local one = all + r * stride + at
    local key, bits = ('%.0f %.0f %.0f'):format(one[1], one[2], one[3]), ('%.0f %.0f'):format(one[4], one[5])
    local before = seen[key]
    if not before then elements = elements + one[1] end
    alike = alike and (not before or before.bits == bits)
    seen[key] = { squares = math.max(before and before.squares or 0, one[0]), bits = bits }
  end
  for _, holder in pairs(seen) do apart = apart + holder.squares end
  return apart, elements, alike
end

---@class lumoe.GradientDifference
---@field rel number     max over the parameters of ‖Δg‖ / max(‖g of the parameter‖, 1e-3 ‖g‖)
---@field parameter string?  where it is
---@field fault string?  elements that nobody holds
---@field uneven string?  a parameter whose holders have other bits, by rounding: each is compared

--- Collective over `group`, all ranks of the model's mesh.
---@return lumoe.GradientDifference
function compare.gradients(model, reference, norm, group)
  local parameters = model:named_parameters()
  local stride = #parameters * FIELDS
  local own, all = ffi.new('double[?]', math.max(stride, 1)), ffi.new('double[?]', math.max(stride * group.size, 1))
  measure(parameters, reference, own)
  checked(C.lm_all_gather(group.pointer, own, 8 * stride, all), own, all)
  local worst = { rel = 0 }
  for i, p in ipairs(parameters) do
    local apart, elements, alike = together(all, group.size, stride, (i - 1) * FIELDS)
    local want = reference[p.name]
    local rel = math.sqrt(apart) / math.max(math.sqrt(want.squares), 1e-3 * norm, 1e-30)
    if compare.exceeds(rel, worst.rel) then worst.rel, worst.parameter = rel, p.name end
    if elements ~= want.count then
      worst.fault = ('%s: %d of %d elements are held'):format(p.name, elements, want.count)
    end
    if not alike then worst.uneven = worst.uneven or p.name end
  end
  return worst
end

--- 16 hex digits that change with any bit of the gradients, whichever rank holds it, and of these numbers.
-- Collective over `group`.
function compare.fingerprint(model, numbers, group)
  local h = group.rank + 0ULL
  for _, p in ipairs(model:named_parameters()) do
    local array, count = held(p)
    for i = 0, count - 1 do h = mix(h, array[i]) end
  end
  for _, x in ipairs(numbers) do h = mix(h, x) end
  local total = ffi.new('int64_t[1]', ffi.cast('int64_t', h))
  checked(C.lm_all_reduce(group.pointer, total, 1, C.LM_I64, C.LM_REDUCE_SUM), total)
  return bit.tohex(total[0])
end

return compare
