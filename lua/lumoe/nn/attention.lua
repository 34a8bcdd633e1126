--- Multi-head attention (Vaswani et al. 2017, 3.2), over itself or over a memory, with a cache.
local autograd = require 'lumoe.autograd'
local caches = require 'lumoe.nn.cache'
local module = require 'lumoe.nn.module'
local Linear = require 'lumoe.nn.linear'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

---@class lumoe.nn.MultiheadAttention : lumoe.Module
local Attention = module.class 'MultiheadAttention'

--- `nn.MultiheadAttention { dim, heads, bias = true, cross = false, rope = false }`
-- cross: keys and values come from a memory. rope: rotary positions (not with cross). mesh: the heads are
-- cut over its tensor group.
function Attention:init(opts)
  tensor.options(opts, { true, true, bias = true, cross = true, rope = true, mesh = true }, 'nn.MultiheadAttention')
  local dim, heads, mesh = opts[1], opts[2], opts.mesh
  local tp = mesh and mesh.tp or 1
  if dim % heads ~= 0 then
    status.argument('nn.MultiheadAttention: dim %d does not divide into %d heads', dim, heads)
  end
  if heads % tp ~= 0 then
    status.argument('nn.MultiheadAttention: %d heads do not divide among tp = %d ranks', heads, tp)
  end
  if opts.cross and opts.rope then status.argument 'nn.MultiheadAttention: rope is for attention over itself' end
  self.cross, self.rope = opts.cross or false, opts.rope or false
  self.heads, self.head_dim = heads / tp, dim / heads -- the heads of this rank
  local function linear(parts, split)
    return Linear { dim, parts * dim, bias = opts.bias ~= false, init = 'xavier', mesh = mesh, split = split, parts = parts }
  end
  if self.cross then self.query, self.key_value = linear(1, 'columns'), linear(2, 'columns')
  else self.query_key_value = linear(3, 'columns') end
  self.output = linear(1, 'rows')
end

-- [B, T, n·heads·head_dim] to n tensors [B, heads, T, head_dim], as views.
local function heads_of(self, x, n)
  local batch, time = x:size(0), x:size(1)
  local parts = x:reshape(batch, time, n, self.heads, self.head_dim)
  local list = {}
  for i = 1, n do list[i] = parts:select(2, i - 1):transpose(1, 2) end
  return unpack(list)
end

-- Rows that share a memory become positions of one row: to a memory, all positions look alike.
local function shared(x, memories)
  local rows = x:size(0)
  if memories == 0 or rows % memories ~= 0 then
    status.argument('nn.MultiheadAttention: %d rows cannot share %d memories', rows, memories)
  end
  return x:reshape(memories, rows / memories * x:size(1), x:size(2))
end

-- The next positions of sequences that are being generated, over the positions before.
local function over_itself(self, x, cache)
  local qkv, first = self.query_key_value(x), cache.length
  caches.make_room(cache, { qkv:size(0), self.heads, first + qkv:size(1), self.head_dim }, qkv.dtype)
  local y = qkv:cached_attention(cache.k, cache.v, cache.rows, self.heads, first, 1 / math.sqrt(self.head_dim),
    self.rope and 10000 or 0)
  cache.length = first + qkv:size(1)
  return self.output(y)
end

-- The same over a memory, whose keys and values are those of the first time.
local function over_memory(self, x, opts)
  local cache, shape = opts.cache, x:shape_table()
  if not cache.k then
    local k, v = heads_of(self, self.key_value(opts.memory), 2)
    cache.k, cache.v = autograd.keep(k:contiguous()), autograd.keep(v:contiguous())
  end
  if cache.k:size(0) ~= shape[1] then x = shared(x, cache.k:size(0)) end
  local y = heads_of(self, self.query(x), 1):attention(cache.k, cache.v, { key_mask = opts.key_mask })
  return self.output(y:transpose(1, 2):reshape(shape[1], shape[2], self.heads * self.head_dim))
end

--- Attends from x to itself, or to opts.memory, which n rows of x in turn may share: the hypotheses of one sentence.
---@param x lumoe.Tensor  [B, Tq, dim]; [n · B, Tq, dim] where B memories serve n rows each
---@param opts? table  causal; key_mask u8 [B, Tk], 1 = may be seen; memory [B, Tk, dim] (cross);
--   cache: a table, `{ length = 0 }` at first, that generation hands back at every position (nn/cache.lua); over
--   itself x is then the next positions, causal and without a mask
---@return lumoe.Tensor   [B, Tq, dim]
function Attention:forward(x, opts)
  opts = opts or {}
  if opts.cache then
    if self.cross then return over_memory(self, x, opts) end
    if opts.key_mask then status.argument 'attention: what a cache holds is seen whole; it takes no key_mask' end
    return over_itself(self, x, opts.cache)
  end
  local rows, memory, kv = x:size(0), opts.memory, nil
  local q = x
  if self.cross then
    if memory:size(0) ~= rows then q = shared(x, memory:size(0)) end
    q, kv = self.query(q), self.key_value(memory)
  else q = self.query_key_value(x) end
  local y = q:packed_attention(self.heads, { kv = kv, key_mask = opts.key_mask, causal = opts.causal, rope = self.rope or nil })
  q:dispose() -- but for what backward reads, these are of no more use
  if kv then kv:dispose() end
  local z = self.output(y:size(0) == rows and y or y:reshape(rows, x:size(1), y:size(2)))
  y:dispose()
  return z
end

return Attention
