--- Rows of a table by id; the same table may give the logits of a language model (Press & Wolf 2017).
local module = require 'lumoe.nn.module'
local parallel = require 'lumoe.dist.parallel'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

---@class lumoe.nn.Embedding : lumoe.Module
---@field cut lumoe.Cut?  where the vocabulary is split: for losses of its logits
local Embedding = module.class 'Embedding'

--- `nn.Embedding { count, dim, std = 1 }`. Options: mesh, and split = 'vocabulary': the ids are cut over
-- its tensor group, of which each rank then holds its share of the rows.
function Embedding:init(opts)
  tensor.options(opts, { true, true, std = true, f32 = true, mesh = true, split = true }, 'nn.Embedding')
  if opts.split ~= nil and opts.split ~= 'vocabulary' then
    status.argument("nn.Embedding: split must be 'vocabulary', not %s", tostring(opts.split))
  end
  self.count = opts[1]
  if opts.split and opts.mesh then self.cut = parallel.cut(self.count, opts.mesh.tensor, 'nn.Embedding: count') end
  module.parameter(self, 'weight', { opts[1], opts[2] }, { init = 'normal', std = opts.std or 1, mesh = opts.mesh,
    at = self.cut and { [0] = { { self.cut.first, self.cut.count } } }, f32 = opts.f32 or type(opts[2]) ~= 'number' })
end

---@param ids lumoe.Tensor  [...] i32 or i64, in 0 to count - 1
---@return lumoe.Tensor     [..., dim]
function Embedding:forward(ids)
  local cut = self.cut
  if not cut then return self.weight:embedding(ids) end
  return parallel.add_up(self.weight:embedding_part(ids, cut.first, cut.whole), cut.group)
end

--- x's products with every row.
---@param x lumoe.Tensor  [..., dim]
---@return lumoe.Tensor   [..., count]
function Embedding:logits(x)
  local cut = self.cut
  if not cut then return x:linear(self.weight) end
  local rows = parallel.copy_to(x:reshape(-1, x:size(-1)), cut.group)
  local shape = x:shape_table()
  shape[#shape] = self.count
  -- Turned, so that each rank's share is rows and they join without another copy.
  return parallel.gather_rows(self.weight:matmul(rows:t()), cut.group, cut.whole):t():reshape(shape)
end

return Embedding
