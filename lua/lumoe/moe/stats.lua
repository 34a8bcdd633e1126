--- How a layer's experts are used: counts kept since the last reset, and what they say.
--
-- Counts over all ranks come free with each plan. Counts by tag (language, task, ...) are this rank's
-- alone until somebody asks; asking is then a collective.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local checked = require 'lumoe.dist.checked'
local dist = require 'lumoe.dist'

local stats = {}

local UNCOUNTED = { valid = true, tokens = true, position = true }
local MAX_TAGS = 1024 -- a tag with more values than this is no category

---@class lumoe.Usage
---@field tokens_per_expert integer[]  routed, before dropping; entry e + 1 is expert e's
---@field routed integer        their sum
---@field dropped integer
---@field drop_rate number
---@field entropy number        of the load, over log(experts): 1 is even, 0 is one expert
---@field max_violation number  load of the busiest expert over the mean, minus 1
---@field mean_violation number mean of |load - mean| over the mean
---@field dead integer[]        ids of experts without a token

--- What counts say. routed and dropped: arrays from 0 of `experts` numbers.
---@return lumoe.Usage
function stats.usage(routed, dropped, experts)
  local use = { tokens_per_expert = {}, routed = 0, dropped = 0, dead = {} }
  local most = 0
  for e = 0, experts - 1 do
    local n = tonumber(routed[e])
    use.tokens_per_expert[e + 1] = n
    use.routed, use.dropped = use.routed + n, use.dropped + tonumber(dropped[e])
    most = math.max(most, n)
    if n == 0 then use.dead[#use.dead + 1] = e end
  end
  local mean, entropy, apart = use.routed / experts, 0, 0
  for _, n in ipairs(use.tokens_per_expert) do
    if n > 0 then entropy = entropy - n / use.routed * math.log(n / use.routed) end
    apart = apart + math.abs(n - mean) / experts
  end
  use.drop_rate = use.routed > 0 and use.dropped / use.routed or 0
  use.entropy = experts > 1 and entropy / math.log(experts) or 1
  use.max_violation = mean > 0 and most / mean - 1 or 0
  use.mean_violation = mean > 0 and apart / mean or 0
  return use
end

---@class lumoe.Counts
local Counts = {}
Counts.__index = Counts

function stats.counts(experts)
  local self = setmetatable({ experts = experts }, Counts)
  self:reset()
  return self
end

function Counts:reset()
  self.calls, self.tokens = 0, 0
  self.routed, self.dropped = ffi.new('int64_t[?]', self.experts), ffi.new('int64_t[?]', self.experts)
  self.by = {} -- tag -> { size, routed [size, experts], dropped }
end

-- Room for tags up to size - 1.
local function grow(self, name, size)
  local old = self.by[name]
  if old and old.size >= size then return old end
  local n = size * self.experts
  local new = { size = size, routed = ffi.new('int64_t[?]', n), dropped = ffi.new('int64_t[?]', n) }
  if old then
    new.no_category = old.no_category
    ffi.copy(new.routed, old.routed, 8 * old.size * self.experts)
    ffi.copy(new.dropped, old.dropped, 8 * old.size * self.experts)
  end
  self.by[name] = new
  return new
end

local WHOLE = { i32 = true, i64 = true, u8 = true }

--- Adds a plan. Tags that are whole numbers, [tokens], are counted by value.
---@param plan lumoe.Plan
---@param tags table<string, lumoe.Tensor>
function Counts:add(plan, tags)
  local routed, kept = C.lm_plan_routed(plan.pointer), C.lm_plan_kept(plan.pointer)
  for e = 0, self.experts - 1 do
    self.routed[e] = self.routed[e] + routed[e]
    self.dropped[e] = self.dropped[e] + routed[e] - kept[e]
  end
  self.calls, self.tokens = self.calls + 1, self.tokens + plan.valid_tokens
  for name, tag in pairs(tags) do
    if not UNCOUNTED[name] and WHOLE[tag.dtype] and tag:dim() == 1 then
      local values = tag:to('i32'):contiguous()
      local pointer = ffi.cast('const int32_t *', values:data_ptr())
      local most = C.lm_max_tag(pointer, plan.tokens)
      local room = grow(self, name, math.min(most + 1, MAX_TAGS))
      room.no_category = room.no_category or most >= MAX_TAGS
      C.lm_plan_count_by_tag(plan.pointer, pointer, room.size, room.routed, room.dropped)
    end
  end
end

--- Everything since the last reset, over all ranks: a Usage, with calls, tokens and, by tag,
-- by[name][value] = Usage. Values nobody had are left out. Collective over mesh.tokens.
function Counts:read(mesh)
  local use = stats.usage(self.routed, self.dropped, self.experts)
  use.calls, use.tokens, use.by = self.calls, self.tokens, {}
  local names = {}
  for name in pairs(self.by) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    use.by[name] = self:read_tag(name, mesh.tokens) -- nil where some rank has seen too many values
  end
  return use
end

-- value -> Usage of one tag, over the ranks of a group, which agree on its size first.
function Counts:read_tag(name, group)
  local own = self.by[name]
  local size = dist.reduce_number(own.no_category and MAX_TAGS + 1 or own.size, 'max', group)
  if size > MAX_TAGS then return nil end
  local n, mine = size * self.experts, grow(self, name, size)
  local all = ffi.new('int64_t[?]', 2 * math.max(n, 1))
  ffi.copy(all, mine.routed, 8 * n)
  ffi.copy(all + n, mine.dropped, 8 * n)
  checked(C.lm_all_reduce(group.pointer, all, 2 * n, C.LM_I64, C.LM_REDUCE_SUM), all)
  local by = {}
  for value = 0, size - 1 do
    local part = stats.usage(all + value * self.experts, all + n + value * self.experts, self.experts)
    if part.routed > 0 then by[value] = part end
  end
  return by
end

--- The short form for a line of a log, without a collective.
function Counts:summary()
  local use = stats.usage(self.routed, self.dropped, self.experts)
  return { load = use.tokens_per_expert, dropped = use.dropped, drop_rate = use.drop_rate,
    entropy = use.entropy, max_violation = use.max_violation, mean_violation = use.mean_violation, dead = #use.dead }
end

return stats
