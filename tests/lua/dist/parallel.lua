-- Run by parallel_spec.lua on three ranks: the collectives that gradients flow through, forth and back.
local lumoe = require 'lumoe'
local dist = lumoe.dist
local rank, world = dist.rank(), dist.world()
assert(world.size == 3)

local function is(t, want)
  local got = t:detach():float():totable()
  assert(#got == #want, #got)
  for i, row in ipairs(want) do
    for j, v in ipairs(row) do assert(math.abs(got[i][j] - v) < 1e-6, ('[%d][%d] is %g, not %g'):format(i, j, got[i][j], v)) end
  end
end

for _, dtype in ipairs { 'f32', 'bf16' } do
  -- x is the same everywhere; each rank multiplies it by its number.
  local x = lumoe.tensor({ { 1, 2 } }, { dtype = dtype, requires_grad = true })
  local y = dist.copy_to(x, world) * (rank + 1)
  is(y, { { rank + 1, 2 * (rank + 1) } })
  local sum = dist.reduce_from(y, world)
  is(sum, { { 6, 12 } })
  ;(sum * lumoe.tensor { { 1, 10 } }):sum():backward()
  is(x.grad, { { 6, 60 } })
  is(x, { { 1, 2 } })

  -- The gradient that copy_to sums may be somebody else's too: it is not written to.
  local z = lumoe.tensor({ { 1, 1 } }, { dtype = dtype, requires_grad = true })
  local inner = dist.copy_to(z, world)
  ;(inner + z):sum():backward()
  is(z.grad, { { 4, 4 } })

  -- Five rows, then two, of which one rank has none.
  for _, rows in ipairs { 5, 2, 0 } do
    local list = {}
    for i = 1, rows do list[i] = { i, -i } end
    local all = rows > 0 and lumoe.tensor(list, { dtype = dtype }) or lumoe.zeros({ 0, 2 }, { dtype = dtype })
    all.requires_grad = true
    local own = dist.slice_rows(all, world)
    local first, count = dist.share(rows, rank, 3)
    assert(own:size(0) == count)
    local mine = {}
    for i = 1, count do mine[i] = { first + i, -first - i } end
    is(own, mine)
    local back = dist.gather_rows(own * (rank + 1), world, rows)
    local want, grad = {}, {}
    for r = 0, 2 do
      local from, n = dist.share(rows, r, 3)
      for i = from + 1, from + n do
        want[i] = { i * (r + 1), -i * (r + 1) }
        grad[i] = { i * (r + 1), i * (r + 1) } -- the loss weighs row i by i
      end
    end
    is(back, want)
    if rows > 0 then
      (back * lumoe.arange(1, rows + 1):unsqueeze(1)):sum():backward()
      is(all.grad, grad)
    end
  end
end

-- Rows of any dtype and number of dims; and as many on each rank as it says.
local ids = dist.gather_rows(lumoe.full({ rank, 1 }, rank, { dtype = 'i32' }), world, { 0, 1, 2 })
is(ids, { { 1 }, { 2 }, { 2 } })
is(dist.slice_rows(ids, world), { { rank == 0 and 1 or 2 } })
local ok, message = pcall(dist.gather_rows, lumoe.zeros { 2, 1 }, world, { 1, 1, 1 })
assert(not ok and message:find 'gather_rows: x is %[2, 1%] f32, but 1 rows were said to be here')
ok, message = pcall(dist.copy_to, lumoe.zeros({ 2 }, { dtype = 'i32' }), world)
assert(not ok and message:find 'copy_to: wants f32 or bf16, not i32')
dist.barrier()
if rank == 0 then print 'all well' end
