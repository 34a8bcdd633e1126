--- Multi-head attention (Vaswani et al. 2017, 3.2), over itself or over a memory, with a cache.
local autograd = require 'lumoe.autograd'
local module = require 'lumoe.nn.module'
local Linear = require 'lumoe.nn.linear'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

---@class lumoe.nn.MultiheadAttention : lumoe.Module
local Attention = module.class 'MultiheadAttention'

--- `nn.MultiheadAttention { dim, heads, bias = true, cross = false, rope = false }`
-- cross: keys and values come from a memory. rope: rotary positions (not with cross).
function Attention:init(opts)
  tensor.options(opts, { true, true, bias = true, cross = true, rope = true }, 'nn.MultiheadAttention')
  local dim, heads = opts[1], opts[2]
  if dim % heads ~= 0 then
    status.argument('nn.MultiheadAttention: dim %d does not divide into %d heads', dim, heads)
  end
  if opts.cross and opts.rope then status.argument 'nn.MultiheadAttention: rope is for attention over itself' end
  self.dim, self.heads, self.cross, self.rope = dim, heads, opts.cross or false, opts.rope or false
  local bias = opts.bias ~= false
  if self.cross then
    self.query = Linear { dim, dim, bias = bias, init = 'xavier' }
    self.key_value = Linear { dim, 2 * dim, bias = bias, init = 'xavier' }
  else
    self.query_key_value = Linear { dim, 3 * dim, bias = bias, init = 'xavier' }
  end
  self.output = Linear { dim, dim, bias = bias, init = 'xavier' }
end

-- [B, T, n·dim] to n tensors [B, heads, T, dim / heads], as views.
local function heads_of(self, x, n)
  local batch, time = x:size(0), x:size(1)
  local parts = x:reshape(batch, time, n, self.heads, self.dim / self.heads)
  local list = {}
  for i = 1, n do list[i] = parts:select(2, i - 1):transpose(1, 2) end
  return unpack(list)
end

--- Keys and values of positions seen before, [B, heads, capacity, dim / heads]; grows by doubling.
local function append(cache, k, v)
  local from, to = cache.length, cache.length + k:size(2)
  if not cache.k or to > cache.k:size(2) then
    local capacity = math.max(16, 2 * to)
    local function grown(old, like)
      local new = tensor.zeros({ like:size(0), like:size(1), capacity, like:size(3) }, { dtype = like.dtype })
      if old then
        new:narrow(2, 0, from):copy_(old:narrow(2, 0, from))
        old:dispose()
      end
      return autograd.keep(new) -- it outlives the position's scope
    end
    cache.k, cache.v = grown(cache.k, k), grown(cache.v, v)
  end
  cache.k:narrow(2, from, to - from):copy_(k)
  cache.v:narrow(2, from, to - from):copy_(v)
  cache.length = to
  return cache.k:narrow(2, 0, to), cache.v:narrow(2, 0, to)
end

--- Attends from x to itself, or to opts.memory.
---@param x lumoe.Tensor  [B, Tq, dim]
---@param opts? table  causal; key_mask u8 [B, Tk], 1 = may be seen; memory [B, Tk, dim] (cross);
--   cache: a table, `{ length = 0 }` at first, that generation hands back at every position
---@return lumoe.Tensor   [B, Tq, dim]
function Attention:forward(x, opts)
  opts = opts or {}
  local cache = opts.cache
  local q, k, v
  if self.cross then
    q = heads_of(self, self.query(x), 1)
    if cache and cache.k then
      k, v = cache.k, cache.v
    else
      k, v = heads_of(self, self.key_value(opts.memory), 2)
      if cache then cache.k, cache.v = autograd.keep(k:contiguous()), autograd.keep(v:contiguous()) end
    end
  else
    q, k, v = heads_of(self, self.query_key_value(x), 3)
    if self.rope then
      local first = cache and cache.length or 0
      q, k = q:rope(first), k:rope(first)
    end
    if cache then k, v = append(cache, k, v) end
  end
  local y = q:attention(k, v, { key_mask = opts.key_mask, causal = opts.causal })
  return self.output(y:transpose(1, 2):reshape(x:size(0), x:size(1), self.dim))
end

return Attention
