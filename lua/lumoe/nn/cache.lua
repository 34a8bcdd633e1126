--- The cache of an attention over itself, while sequences are generated: { length, k, v, rows }. k and v are keys and values
-- of the positions before, [rows, heads, capacity, head_dim], of which the first `length` are there. rows, if the sequences were
-- ever reordered, says in which row of k and v each position of a sequence lies, i32 [sequences, capacity].
local autograd = require 'lumoe.autograd'
local tensor = require 'lumoe.tensor'

local cache = {}

-- `old`, whose dim holds `length` of what will be `capacity`, in more room.
local function grown(old, dim, length, capacity)
  local shape = old:shape_table()
  shape[dim + 1] = capacity
  local new = tensor.zeros(shape, { dtype = old.dtype })
  new:narrow(dim, 0, length):copy_(old:narrow(dim, 0, length))
  old:dispose()
  return autograd.keep(new) -- it outlives the position's scope
end

--- Grows a cache, by doubling, to have room for `shape`: [sequences, heads, positions, head_dim].
function cache.make_room(c, shape, dtype)
  local positions = shape[3]
  if c.k and positions <= c.k:size(2) then return end
  local capacity = math.max(16, 2 * positions)
  for _, side in ipairs { 'k', 'v' } do
    c[side] = c[side] and grown(c[side], 2, c.length, capacity)
      or autograd.keep(tensor.zeros({ shape[1], shape[2], capacity, shape[4] }, { dtype = dtype }))
  end
  if c.rows then c.rows = grown(c.rows, 1, c.length, capacity) end
end

--- Sequence i becomes what sequence order[i] was; there may be fewer than before, but not more. Keys and values stay where
-- they are.
---@param order lumoe.Tensor  i32
function cache.reorder(c, order)
  local before = c.rows
  if not before then
    local rows, capacity = c.k:size(0), c.k:size(2)
    before = tensor.arange(0, rows, { dtype = 'i32' }):unsqueeze(1):expand(rows, capacity)
  end
  c.rows = autograd.keep(before:index_select(0, order))
  before:dispose()
end

return cache
