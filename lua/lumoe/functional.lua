--- Operations with defaults and options: methods of a tensor like those of bind.lua, under PyTorch's names.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local bind = require 'lumoe.bind'
local handle = require 'lumoe.handle'
local parallel = require 'lumoe.dist.parallel'
local random = require 'lumoe.random'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local pointer, ops = handle.pointer, bind.ops
local Tensor = tensor.methods

--- Over one dim, the last by default. Computed in f32, given in x's dtype.
function Tensor:softmax(dim) return ops.softmax(self, dim or -1) end
function Tensor:log_softmax(dim) return ops.log_softmax(self, dim or -1) end
function Tensor:logsumexp(dim, keepdim) return ops.logsumexp(self, dim or -1, keepdim) end

--- Over the last dim; weight and bias have its size and may be nil.
function Tensor:layer_norm(weight, bias, eps) return ops.layer_norm(self, weight, bias, eps or 1e-5) end
function Tensor:rms_norm(weight, eps) return ops.rms_norm(self, weight, eps or 1e-6) end

--- The k largest along dim (the last), descending, ties to the lower index: values, ids (i64).
function Tensor:topk(k, dim) return ops.topk(self, k, dim or -1) end
--- All in order along dim (the last), stable: values, ids (i64).
function Tensor:sort(dim, descending) return ops.sort(self, dim or -1, descending) end

--- Each element is 0 with chance p, else over 1 - p. The draws are the script's next, as those of lumoe.rand, or those
-- of a stream (random.stream gives its two halves); rows: i64 ids of the rows (all dims but the last).
function Tensor:dropout(p, high, low, rows)
  if high == nil then high, low = random.stream 'script' end
  return ops.dropout(self, p, high, low, rows)
end

local CROSS_ENTROPY = { ignore_index = true, label_smoothing = true, z_loss = true, reduction = true, cut = true }
local out = ffi.new 'lm_tensor *[1]'

local function owned(st)
  status.check(st)
  return handle.own(out[0])
end

--- Cross entropy of logits [..., classes] (the last dim, unlike PyTorch's second) with class ids [...].
-- Always f32. Options: ignore_index = -100; label_smoothing = 0; z_loss = 0, the weight of logsumexp²;
-- reduction = 'mean' over the ids that are not ignored (0 if there are none), 'sum', or 'none'; cut: that
-- of the layer whose classes are cut over ranks (dist.cut), where the logits are those of this rank's.
---@param targets lumoe.Tensor  i32 or i64
---@return lumoe.Tensor         [] or, without reduction, targets' shape
function Tensor:cross_entropy(targets, opts)
  opts = tensor.options(opts, CROSS_ENTROPY, 'cross_entropy')
  local ignore, reduction = opts.ignore_index or -100, opts.reduction or 'mean'
  if reduction ~= 'mean' and reduction ~= 'sum' and reduction ~= 'none' then
    status.argument("cross_entropy: no reduction '%s'; there are mean, sum, none", tostring(reduction))
  end
  local cut, smoothing, z_loss = opts.cut, opts.label_smoothing or 0, opts.z_loss or 0
  local losses = cut and owned(C.lm_cut_cross_entropy(cut.group.pointer, cut.first, cut.whole,
      pointer(self, 'cross_entropy', 'logits'), pointer(targets, 'cross_entropy', 'targets'), ignore, smoothing, z_loss, out))
    or ops.cross_entropy(self, targets, ignore, smoothing, z_loss)
  if reduction == 'none' then return losses end
  if reduction == 'sum' then return losses:sum() end
  return losses:sum() / math.max(1, targets:ne(ignore):sum():item())
end

local LINEAR_CROSS_ENTROPY = { ignore_index = true, label_smoothing = true, z_loss = true, cut = true }

--- x:linear(weight):cross_entropy(targets, { reduction = 'sum', .. }) in less memory and time: the logits
-- are never whole in memory. Options as there, but for the reduction; with a cut, weight is this rank's.
---@param weight lumoe.Tensor   [classes, in]
---@param targets lumoe.Tensor  [...] i32 or i64
---@return lumoe.Tensor         [] f32
function Tensor:linear_cross_entropy(weight, targets, opts)
  opts = tensor.options(opts, LINEAR_CROSS_ENTROPY, 'linear_cross_entropy')
  local cut, ignore = opts.cut, opts.ignore_index or -100
  local smoothing, z_loss = opts.label_smoothing or 0, opts.z_loss or 0
  if not cut then return ops.linear_cross_entropy(self, weight, targets, ignore, smoothing, z_loss) end
  local x = parallel.copy_to(self, cut.group)
  return owned(C.lm_cut_linear_cross_entropy(cut.group.pointer, cut.first, cut.whole, pointer(x),
    pointer(weight, 'linear_cross_entropy', 'weight'), pointer(targets, 'linear_cross_entropy', 'targets'), ignore,
    smoothing, z_loss, out))
end

local ATTENTION = { key_mask = true, causal = true, scale = true }

--- softmax(scale · self kᵀ) v. self [B, H, Tq, dh], k and v [B, G, Tk, dh] where G divides H.
-- Options: key_mask, u8 [B, Tk], 1 where a key may be seen; causal: query i sees keys up to i + Tk - Tq;
-- scale = 1/√dh. A query that may see no key gives 0.
---@return lumoe.Tensor  [B, H, Tq, dh]; transpose(1, 2) of it is contiguous
function Tensor:attention(k, v, opts)
  opts = tensor.options(opts, ATTENTION, 'attention')
  local scale = opts.scale
  if not scale then
    local p = pointer(self, 'attention', 'q')
    local width = C.lm_tensor_ndim(p) > 0 and C.lm_tensor_size(p, C.lm_tensor_ndim(p) - 1) or 1
    scale = 1 / math.sqrt(math.max(1, width))
  end
  return ops.scaled_dot_product_attention(self, k, v, opts.key_mask, opts.causal, scale)
end
Tensor.scaled_dot_product_attention = Tensor.attention

local PACKED = { kv = true, key_mask = true, causal = true, scale = true, rope = true }

--- The same over rows of products as they are: self [B, T, 3·H·dh], queries, keys and values side by side; or
-- queries alone, [B, Tq, H·dh], with option kv [B, Tk, 2·H·dh]. Options as above, and rope: rotary positions
-- from 0 on, true or their base (not with kv).
---@return lumoe.Tensor  [B, Tq, H·dh]
function Tensor:packed_attention(heads, opts)
  opts = tensor.options(opts, PACKED, 'packed_attention')
  local scale, rope_base = opts.scale, opts.rope == true and 10000 or opts.rope or 0
  if not scale then
    local p = pointer(self, 'packed_attention', 'qkv')
    local width = C.lm_tensor_ndim(p) > 0 and C.lm_tensor_size(p, C.lm_tensor_ndim(p) - 1) or 1
    scale = 1 / math.sqrt(math.max(1, width / (opts.kv and 1 or 3) / heads))
  end
  return ops.packed_attention(self, opts.kv, heads, opts.key_mask, opts.causal, scale, rope_base)
end

local ROPE = { base = true, interleaved = true }

--- Rotary positions for self [..., H, T, dh]. positions: the first one (0), the others counting up from
-- it, or a tensor of ids, [T] or [..., T]. Options: base = 10000; interleaved = false, pairs (i, i + dh/2).
function Tensor:rope(positions, opts)
  opts = tensor.options(opts, ROPE, 'rope')
  if not tensor.is_tensor(positions) then
    local first = positions or 0
    if type(first) ~= 'number' then
      status.argument('rope: positions must be a number or a tensor, not a %s', type(first))
    end
    local time = self:dim() > 1 and self:size(-2) or 0
    positions = tensor.arange(first, first + time, { dtype = 'i32' })
  end
  return ops.rope(self, positions, opts.base or 10000, opts.interleaved)
end

return Tensor
