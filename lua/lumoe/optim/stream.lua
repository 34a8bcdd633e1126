--- Optimizer state that lives in a tier and passes through memory when it is updated.
--
-- The elements of many parameters follow one another in a long row. Each slot (m, v, master, gradient) is
-- such a row in the tier, and memory sees a bucket of it at a time, through three windows:
--
--   bucket       0         1         2         3
--   tier    |---------|---------|---------|---------
--             (done)    written   updated    read
--
-- While a bucket is updated by the same kernels as in memory, the next one is read and the one before is
-- written. The windows exist during the update alone, when no activations do.
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local tensor = require 'lumoe.tensor'

local GRAIN = 1024 -- elements that a kernel takes at a time: who starts at a multiple is cut where it would be in memory
local F32 = 4
local WINDOWS = 3

---@class lumoe.Stream
---@field slots string[]   in the order of their names; 'gradient' is read, never written, by an update
---@field bucket integer   elements
local Stream = {}
Stream.__index = Stream

--- bucket: bytes of one window, all slots together; 2 MiB.
---@param tier lumoe.Tier
---@param slots string[]
---@param bucket integer?
function Stream.new(tier, slots, bucket)
  table.sort(slots)
  local elements = math.floor((bucket or 2 ^ 21) / (F32 * #slots) / GRAIN) * GRAIN
  return setmetatable({ tier = tier, slots = slots, bucket = math.max(elements, GRAIN), elements = 0, entries = {} }, Stream)
end

--- One more parameter: an entry, which the caller may hang its own things on.
---@return { first: integer, count: integer }
function Stream:add(count)
  local entry = { first = self.elements, count = count, number = #self.entries + 1 }
  self.entries[entry.number] = entry
  self.elements = self.elements + math.ceil(count / GRAIN) * GRAIN
  return entry
end

--- Reserves the space. What is not written there is 0.
function Stream:reserve()
  local rows = F32 * self.elements
  self.base = {}
  local at = self.tier:reserve(rows * #self.slots)
  for i, slot in ipairs(self.slots) do self.base[slot] = at + (i - 1) * rows end
  return self
end

local function place(self, slot, element) return self.base[slot] + F32 * element end

--- Begins to write, or read, elements of an entry's slot, from `first` on: a contiguous f32 tensor.
-- Returns the number to wait for.
function Stream:write(slot, entry, t, first) return self.tier:write(place(self, slot, entry.first + (first or 0)), t) end
function Stream:read(slot, entry, t, first) return self.tier:read(place(self, slot, entry.first + (first or 0)), t) end

--- f(first, count) for pieces of an entry no longer than a bucket.
function Stream:pieces(entry, f)
  for first = 0, entry.count - 1, self.bucket do f(first, math.min(self.bucket, entry.count - first)) end
end

--- Memory for `elements` of a slot, booked as the optimizer's.
local function window(elements)
  local before = C.lm_memory_set_purpose(C.LM_MEM_OPTIMIZER)
  local ok, t = pcall(tensor.empty, elements)
  C.lm_memory_set_purpose(before)
  if not ok then error(t, 0) end
  return t
end

-- Buckets in which `due` entries lie: { at, count, parts = { { entry, first, count, at } } }.
local function buckets_of(self, due)
  local list, last = {}, nil
  for _, entry in ipairs(self.entries) do
    local first = due(entry) and 0 or entry.count
    while first < entry.count do
      local element = entry.first + first
      local number = math.floor(element / self.bucket)
      local count = math.min(entry.count - first, (number + 1) * self.bucket - element)
      if not last or last.number ~= number then
        last = { number = number, at = number * self.bucket, parts = {} }
        last.count = math.min(self.bucket, self.elements - last.at)
        list[#list + 1] = last
      end
      table.insert(last.parts, { entry = entry, first = first, count = count, at = element - last.at })
      first = first + count
    end
  end
  return list
end

-- Begins to read or write a bucket's slots; returns the last one's number.
local function move(self, how, bucket, windows, slots)
  local number
  for _, slot in ipairs(slots) do
    number = self.tier[how](self.tier, place(self, slot, bucket.at), windows[slot]:narrow(0, 0, bucket.count))
  end
  return number
end

local function without(slots, name)
  local list = {}
  for _, slot in ipairs(slots) do
    if slot ~= name then list[#list + 1] = slot end
  end
  return list
end

-- The queue keeps order, so a window that is being written may be given to a read at once.
local function run(self, list, gradients, step)
  local written = without(self.slots, 'gradient')
  local read = gradients and self.slots or written
  local windows, here = {}, {}
  for i = 1, math.min(WINDOWS, #list) do
    windows[i] = {}
    for _, slot in ipairs(read) do windows[i][slot] = window(self.bucket) end
  end
  local function begin(i)
    if list[i] then here[i] = move(self, 'read', list[i], windows[(i - 1) % WINDOWS + 1], read) end
  end
  begin(1)
  for i, bucket in ipairs(list) do
    begin(i + 1)
    self.tier:wait(here[i])
    local views = windows[(i - 1) % WINDOWS + 1]
    autograd.scope(function()
      for _, part in ipairs(bucket.parts) do
        local state = {}
        for slot, t in pairs(views) do state[slot] = t:narrow(0, part.at, part.count) end
        step(part.entry, part.first, part.count, state)
      end
      move(self, 'write', bucket, views, written)
    end)
  end
end

--- Calls step(entry, first, count, state) for all elements of the entries that are `due(entry)`, piece by
-- piece; what it changes in state[slot], f32 [count], is written back. gradients: whether to read those.
function Stream:update(due, gradients, step)
  autograd.scope(autograd.no_grad, function()
    local list = buckets_of(self, due)
    local ok, message = pcall(run, self, list, gradients, step)
    local waited, wrong = pcall(self.tier.wait, self.tier) -- the windows are the worker's until then
    if not ok then error(message, 0) end
    if not waited then error(wrong, 0) end
  end)
end

return Stream
