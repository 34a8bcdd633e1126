--- Arrays in plain Lua, in doubles: what the operations are compared with. An array is
-- { shape = {…}, data = {…} }, row-major; indices in the callbacks count from 0.
local naive = {}

function naive.numel(shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  return n
end

--- An array of f(index) for every index.
function naive.build(shape, f)
  local data, index = {}, {}
  for d = 1, #shape do index[d] = 0 end
  for at = 1, naive.numel(shape) do
    data[at] = f(index)
    for d = #shape, 1, -1 do
      index[d] = index[d] + 1
      if index[d] < shape[d] then break end
      index[d] = 0
    end
  end
  return { shape = { unpack(shape) }, data = data }
end

--- The element at an index, whose leading dims may be too many and whose sizes of 1 stand for all.
function naive.at(a, index)
  local at, lead = 0, #index - #a.shape
  for d, size in ipairs(a.shape) do at = at * size + (size == 1 and 0 or index[lead + d]) end
  return a.data[at + 1]
end

function naive.from(tensor)
  return { shape = tensor:size(), data = tensor:numel() > 0 and tensor:reshape(-1):totable() or {} }
end

local function common(a, b)
  local shape = {}
  local n = math.max(#a, #b)
  for d = 1, n do
    local x, y = a[d - n + #a] or 1, b[d - n + #b] or 1
    shape[d] = x == 1 and y or x
  end
  return shape
end

--- f of the elements of one to three arrays that broadcast.
function naive.map(f, a, b, c)
  local shape = a.shape
  if b then shape = common(shape, b.shape) end
  if c then shape = common(shape, c.shape) end
  return naive.build(shape, function(i)
    if c then return f(naive.at(a, i), naive.at(b, i), naive.at(c, i)) end
    if b then return f(naive.at(a, i), naive.at(b, i)) end
    return f(naive.at(a, i))
  end)
end

local function with(index, dim, value)
  local copy = { unpack(index) }
  copy[dim + 1] = value
  return copy
end

--- f of each line along `dim` (a list): a list in its place, or a number that takes the dim away.
function naive.along(a, dim, f, keepdim)
  if #a.shape == 0 then
    local line = f { a.data[1] }
    return { shape = {}, data = { type(line) == 'table' and line[1] or line } }
  end
  dim = dim < 0 and dim + #a.shape or dim
  local lines, outer = {}, with(a.shape, dim, 1)
  local length, single = nil, false
  local starts = naive.build(outer, function(i)
    local line = {}
    for j = 0, a.shape[dim + 1] - 1 do line[j + 1] = naive.at(a, with(i, dim, j)) end
    local made = f(line)
    if type(made) == 'number' then made, single = { made }, true end
    lines[#lines + 1], length = made, #made
    return #lines
  end)
  if not length then -- no lines at all: only the form of the result is wanted
    local line = {}
    for j = 1, a.shape[dim + 1] do line[j] = j end
    local made = f(line)
    single, length = type(made) == 'number', type(made) == 'number' and 1 or #made
  end
  local result = naive.build(with(a.shape, dim, length), function(i)
    return lines[naive.at(starts, with(i, dim, 0))][i[dim + 1] + 1]
  end)
  if single and not keepdim then table.remove(result.shape, dim + 1) end
  return result
end

--- Products of the last two dims; the others broadcast.
function naive.matmul(a, b)
  local m, k, n = a.shape[#a.shape - 1], a.shape[#a.shape], b.shape[#b.shape]
  local function batch(shape) return { unpack(shape, 1, #shape - 2) } end
  local shape = common(batch(a.shape), batch(b.shape))
  local count = #shape
  shape[count + 1], shape[count + 2] = m, n
  return naive.build(shape, function(i)
    local sum, left, right = 0, { unpack(i) }, { unpack(i) }
    for j = 0, k - 1 do
      left[count + 2], right[count + 1] = j, j
      local x = { unpack(left, 1 + count + 2 - #a.shape) }
      local y = { unpack(right, 1 + count + 2 - #b.shape) }
      sum = sum + naive.at(a, x) * naive.at(b, y)
    end
    return sum
  end)
end

function naive.reshape(a, shape) return { shape = shape, data = a.data } end

function naive.permute(a, dims)
  local shape = {}
  for d = 1, #dims do shape[d] = a.shape[dims[d] + 1] end
  return naive.build(shape, function(i)
    local from = {}
    for d = 1, #dims do from[dims[d] + 1] = i[d] end
    return naive.at(a, from)
  end)
end

function naive.transpose(a, x, y)
  local dims = {}
  for d = 1, #a.shape do dims[d] = d - 1 end
  x, y = x < 0 and x + #dims or x, y < 0 and y + #dims or y
  dims[x + 1], dims[y + 1] = y, x
  return naive.permute(a, dims)
end

function naive.narrow(a, dim, start, length)
  return naive.along(a, dim, function(line) return { unpack(line, start + 1, start + length) } end)
end

function naive.sum(list)
  local total = 0
  for _, v in ipairs(list) do total = total + v end
  return total
end

--- log Σ exp of a list.
function naive.logsumexp(list)
  local top, total = -math.huge, 0
  for _, v in ipairs(list) do top = math.max(top, v) end
  for _, v in ipairs(list) do total = total + math.exp(v - top) end
  return top + math.log(total)
end

function naive.softmax(list)
  local lse, out = naive.logsumexp(list), {}
  for i, v in ipairs(list) do out[i] = math.exp(v - lse) end
  return out
end

--- Positions (from 0) of a list in order, ties to the lower.
function naive.order(list, descending)
  local ids = {}
  for i = 1, #list do ids[i] = i - 1 end
  table.sort(ids, function(a, b)
    local x, y = list[a + 1], list[b + 1]
    if x ~= y then
      if descending then return x > y end
      return x < y
    end
    return a < b
  end)
  return ids
end

function naive.erf(x) -- Maclaurin: exact enough for |x| < 4
  local term, sum, n = x, x, 0
  repeat
    n = n + 1
    term = -term * x * x / n
    sum = sum + term / (2 * n + 1)
  until math.abs(term) < 1e-18
  return 2 / math.sqrt(math.pi) * sum
end

--- Uniform numbers in [lo, hi) that are the same in every run and any LuaJIT.
function naive.generator(seed)
  local state = seed
  return function(lo, hi)
    state = (state * 16807) % 2147483647
    return lo + (hi - lo) * (state / 2147483647)
  end
end

return naive
