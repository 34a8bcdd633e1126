--- Optimizer state that lives in a tier and passes through memory when it is updated.
--
-- The elements of many parameters follow one another in a long row. Each slot (m, v, master) is such a row in
-- the tier, and memory sees a bucket of it at a time, through three windows:
--
--   bucket       0         1         2         3
--   tier    |---------|---------|---------|---------
--             (done)    written   updated    read
--
-- While a bucket is updated by the same kernels as in memory, the next one is read and the one before is
-- written. Gradients, and parameters that are offloaded too, have places of their own in the tier and pass
-- through windows of the same length. The windows exist during the update alone, when no activations do.
local C = require 'lumoe.ffi'
local autograd = require 'lumoe.autograd'
local tensor = require 'lumoe.tensor'

local GRAIN = 1024 -- elements that a kernel takes at a time: who starts at a multiple is cut where it would be in memory
local SIZE = { f32 = 4, bf16 = 2 }
local WINDOWS = 3

---@class lumoe.Stream
---@field slots string[]               in the order of their names
---@field dtype table<string, string>  of each
---@field bucket integer               elements
local Stream = {}
Stream.__index = Stream

--- slots: name -> dtype; bucket: bytes of one window, all slots and the gradient together; 2 MiB.
---@param tier lumoe.Tier
---@param slots table<string, string>
---@param bucket integer?
function Stream.new(tier, slots, bucket)
  local names, each = {}, SIZE.f32 -- the gradient
  for name, dtype in pairs(slots) do
    names[#names + 1], each = name, each + SIZE[dtype]
  end
  table.sort(names)
  local elements = math.floor((bucket or 2 ^ 21) / each / GRAIN) * GRAIN
  return setmetatable({ tier = tier, slots = names, dtype = slots, bucket = math.max(elements, GRAIN), elements = 0,
    entries = {} }, Stream)
end

---@class lumoe.StreamEntry
---@field first integer       in the row
---@field count integer
---@field gradient integer?   where it is in the tier; nil: in memory
---@field parameter integer?  the same of the parameter itself, which is of
---@field dtype string?

--- One more parameter: an entry, on which the caller may hang more.
---@return lumoe.StreamEntry
function Stream:add(count)
  local entry = { first = self.elements, count = count, number = #self.entries + 1 }
  self.entries[entry.number] = entry
  self.elements = self.elements + math.ceil(count / GRAIN) * GRAIN
  return entry
end

--- Reserves the space. What is not written there is 0.
function Stream:reserve()
  self.base = {}
  local bytes = 0
  for _, slot in ipairs(self.slots) do
    self.base[slot], bytes = bytes, bytes + SIZE[self.dtype[slot]] * self.elements
  end
  local at = self.tier:reserve(bytes)
  for slot, base in pairs(self.base) do self.base[slot] = at + base end
  return self
end

local function place(self, slot, element) return self.base[slot] + SIZE[self.dtype[slot]] * element end

--- Begins to write, or read, elements of an entry's slot, from `first` on: a contiguous tensor of the slot's dtype.
-- Returns the number to wait for.
function Stream:write(slot, entry, t, first) return self.tier:write(place(self, slot, entry.first + (first or 0)), t) end
function Stream:read(slot, entry, t, first) return self.tier:read(place(self, slot, entry.first + (first or 0)), t) end

--- f(first, count) for pieces of an entry no longer than a bucket.
function Stream:pieces(entry, f)
  for first = 0, entry.count - 1, self.bucket do f(first, math.min(self.bucket, entry.count - first)) end
end

-- Memory booked as the optimizer's.
local function window(elements, dtype)
  local before = C.lm_memory_set_purpose(C.LM_MEM_OPTIMIZER)
  local ok, t = pcall(tensor.empty, elements, { dtype = dtype })
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

-- Memory for whatever the buckets have: slots, and what comes from places of its own.
local function windows_for(self, list)
  local has = {}
  for _, bucket in ipairs(list) do
    for _, part in ipairs(bucket.parts) do
      if part.entry.gradient then has.gradient = 'f32' end
      if part.entry.parameter then has.parameter = part.entry.dtype end
    end
  end
  for _, slot in ipairs(self.slots) do has[slot] = self.dtype[slot] end
  local windows = {}
  for i = 1, math.min(WINDOWS, #list) do
    windows[i] = {}
    for name, dtype in pairs(has) do windows[i][name] = window(self.bucket, dtype) end
  end
  return windows
end

-- Begins to read or write a bucket's slots; returns the last one's number.
local function move_rows(self, how, bucket, windows)
  local number
  for _, slot in ipairs(self.slots) do
    number = self.tier[how](self.tier, place(self, slot, bucket.at), windows[slot]:narrow(0, 0, bucket.count))
  end
  return number
end

-- The same of what has places of its own. A parameter that has a master is written from it, so it is not read.
local function move_parts(self, how, bucket, windows, name)
  local number
  for _, part in ipairs(bucket.parts) do
    local base = part.entry[name]
    if base then
      local t = windows[name]:narrow(0, part.at, part.count)
      number = self.tier[how](self.tier, base + SIZE[t.dtype] * part.first, t)
    end
  end
  return number
end

local function read(self, bucket, windows)
  local number = move_rows(self, 'read', bucket, windows)
  number = move_parts(self, 'read', bucket, windows, 'gradient') or number
  if windows.parameter and not self.base.master then
    number = move_parts(self, 'read', bucket, windows, 'parameter') or number
  end
  return number or 0
end

local function write(self, bucket, windows)
  move_rows(self, 'write', bucket, windows)
  move_parts(self, 'write', bucket, windows, 'parameter')
end

-- The queue keeps order, so a window that is being written may be given to a read at once.
local function run(self, list, step)
  local windows, here = windows_for(self, list), {}
  local function begin(i)
    if list[i] then here[i] = read(self, list[i], windows[(i - 1) % WINDOWS + 1]) end
  end
  begin(1)
  for i, bucket in ipairs(list) do
    begin(i + 1)
    self.tier:wait(here[i])
    local views = windows[(i - 1) % WINDOWS + 1]
    autograd.scope(function()
      for _, part in ipairs(bucket.parts) do
        local state = {}
        for name, t in pairs(views) do state[name] = t:narrow(0, part.at, part.count) end
        step(part.entry, part.first, part.count, state)
      end
      write(self, bucket, views)
    end)
  end
end

--- Calls step(entry, first, count, state) for all elements of the entries that are `due(entry)`, piece by
-- piece; what it changes in state[slot], [count], and in state.parameter, is written back. All of a
-- stream's offloaded parameters are of one dtype.
function Stream:update(due, step)
  autograd.scope(autograd.no_grad, function()
    local list = buckets_of(self, due)
    local ok, message = pcall(run, self, list, step)
    local waited, wrong = pcall(self.tier.wait, self.tier) -- the windows are the worker's until then
    if not ok then error(message, 0) end
    if not waited then error(wrong, 0) end
  end)
end

return Stream
