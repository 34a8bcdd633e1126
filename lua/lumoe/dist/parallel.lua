--- Collectives that gradients flow through (runtime/parallel.h), and how a size is cut over a group.
--
-- The ranks of a tensor group hold the same activations, and each a part of a layer (Shoeybi et al.
-- 2019, section 3). Every member calls these alike. A group of one leaves everything as it is.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local groups = require 'lumoe.dist.group'
local handle = require 'lumoe.handle'
local status = require 'lumoe.status'

local parallel = {}
local pointer, out = handle.pointer, ffi.new 'lm_tensor *[1]'

local function result(st)
  status.check(st)
  return handle.own(out[0])
end

--- x; backward: the sum of its gradients over the group. Where activations enter the parts of a layer.
---@param x lumoe.Tensor
---@param group lumoe.Group
function parallel.copy_to(x, group)
  if group.size == 1 then return x end
  return result(C.lm_copy_to(group.pointer, pointer(x, 'copy_to', 'x'), out))
end

--- The sum of x over the group; backward: the gradient as it is. Where they leave.
function parallel.reduce_from(x, group)
  if group.size == 1 then return x end
  return result(C.lm_reduce_from(group.pointer, pointer(x, 'reduce_from', 'x'), out))
end

--- The same of a part that nobody needs any more: its bytes go at once, not at the end of the scope.
function parallel.add_up(part, group)
  local whole = parallel.reduce_from(part, group)
  if group.size > 1 then part:dispose() end
  return whole
end

--- This rank's share (dist.share) of the rows of x, its first dim; backward: all shares, joined.
function parallel.slice_rows(x, group)
  if group.size == 1 then return x end
  return result(C.lm_slice_rows(group.pointer, pointer(x, 'slice_rows', 'x'), out))
end

--- The rows of all ranks, joined in their order; backward: this rank's. counts: how many each rank has,
-- or the number of all rows, shared by dist.share.
---@param counts integer[]|integer
function parallel.gather_rows(x, group, counts)
  if group.size == 1 then return x end
  local rows = ffi.new('int64_t[?]', group.size)
  for r = 0, group.size - 1 do
    rows[r] = type(counts) == 'number' and select(2, groups.share(counts, r, group.size)) or counts[r + 1]
  end
  return result(C.lm_gather_rows(group.pointer, pointer(x, 'gather_rows', 'x'), rows, out))
end

-- ---- sizes cut over a group ----------------------------------------------------------------

---@class lumoe.Cut
---@field group lumoe.Group
---@field whole integer   the size over all ranks
---@field first integer   where this rank's range begins
---@field count integer   its length

--- A size cut over the ranks of a group into contiguous shares (dist.share), of which each has at least
-- one; nil for a group of one. `what` names it in the error when it is too small.
---@return lumoe.Cut?
function parallel.cut(whole, group, what)
  if group.size == 1 then return nil end
  if whole < group.size then
    status.argument('%s %d does not spread over tp = %d ranks', what, whole, group.size)
  end
  local first, count = groups.share(whole, group.rank, group.size)
  return { group = group, whole = whole, first = first, count = count }
end

return parallel
