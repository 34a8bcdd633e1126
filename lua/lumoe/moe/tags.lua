--- What a layer's tokens carry: tags, flattened with x so that each is [tokens, ...].
local C = require 'lumoe.ffi'
local checked = require 'lumoe.dist.checked'
local dist = require 'lumoe.dist'
local ffi = require 'ffi'
local recompute = require 'lumoe.nn.recompute'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local tags = {}

-- A tag of [batch], [batch, time] or [batch, time, ...] for x [batch, time, dim]: one row a token.
local function flatten(name, tag, lead)
  local shape, count = tag:shape_table(), 1
  for d, size in ipairs(lead) do
    if shape[d] and shape[d] ~= size then
      status.argument("moe.Layer: tag '%s' is %s, but x's leading sizes are [%s]", name, tensor.describe(tag),
        table.concat(lead, ', '))
    end
    count = count * size
  end
  if #shape < #lead then
    for d = #shape + 1, #lead do tag = tag:unsqueeze(d - 1) end
    return tag:expand(lead):reshape(count)
  end
  local flat = { count }
  for d = #lead + 1, #shape do flat[#flat + 1] = shape[d] end
  return tag:reshape(flat)
end

-- Ids where the caller gave none: counted over the ranks of the data group, one after the other.
local function count_tokens(count, group)
  local first = 0
  if group.size > 1 then
    local mine, counts = ffi.new('int64_t[1]', count), ffi.new('int64_t[?]', group.size)
    checked(C.lm_all_gather(group.pointer, mine, 8, counts), mine, counts)
    for r = 0, group.rank - 1 do first = first + tonumber(counts[r]) end
  end
  return tensor.arange(first, first + count)
end

--- Tags of a call, flattened. tokens (i64 ids, unique over all ranks) and valid (u8) always exist after;
-- the second result is valid, or nil if all tokens are.
---@param given table<string, lumoe.Tensor>?
---@param lead integer[]  x's leading sizes
---@param mesh lumoe.Mesh
function tags.flatten(given, lead, mesh)
  local flat, count = {}, 1
  for _, size in ipairs(lead) do count = count * size end
  for name, tag in pairs(given or {}) do
    if tensor.is_tensor(tag) then flat[name] = flatten(name, tag, lead) else flat[name] = tag end
  end
  flat.tokens = flat.tokens ~= nil and flat.tokens:to('i64'):contiguous()
    or recompute.once('tokens', count_tokens, count, mesh.data)
  local valid = flat.valid
  if valid ~= nil then valid = valid:to('u8'):contiguous() end
  flat.valid = valid ~= nil and valid or tensor.ones(count, { dtype = 'u8' })
  return flat, valid
end

--- The same of this rank's share of the tokens that a tensor group holds.
function tags.slice(flat, valid, group)
  if group.size == 1 then return flat, valid end
  local own = {}
  for name, tag in pairs(flat) do own[name] = tensor.is_tensor(tag) and dist.slice_rows(tag, group) or tag end
  return own, valid and own.valid or nil
end

return tags
