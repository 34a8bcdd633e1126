--- A trace: which experts each token went to, and which of its routes were dropped, of every MoE layer.
--
--     local trace = moe.trace()
--     trace:record(function() loss = model:loss(batch) end)   -- writes the plans down
--     trace:replay(function() loss = other:loss(batch) end)   -- the same routes, whatever the scores say
--     trace:save 'step-17.routes'                             -- lines of text, one a token
--
-- It is keyed by layer, call and token id, so it holds under any layout: a rank records the tokens that
-- it plans, and replays those that it finds. Replaying changes the choice alone: weights come from the
-- scores, as always, and gradients with them.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local checked = require 'lumoe.dist.checked'
local tensor = require 'lumoe.tensor'

---@class lumoe.moe.Trace
---@field layers table<string, table[]>  router's path -> its calls in order
local Trace = {}
Trace.__index = Trace

local function new() return setmetatable({ layers = {} }, Trace) end

-- What is going on: { trace, calls = path -> number of calls so far }.
local recording, replaying

local function during(trace, set, f, ...)
  local before = set { trace = trace, calls = {} }
  local function done(ok, ...)
    set(before)
    if not ok then error((...), 0) end
    return ...
  end
  return done(xpcall(f, function(message) return message end, ...))
end

local function set_recording(now)
  local before = recording
  recording = now
  return before
end

local function set_replaying(now)
  local before = replaying
  replaying = now
  return before
end

--- f(...), writing down every choice of an MoE layer in it.
function Trace:record(f, ...) return during(self, set_recording, f, ...) end

--- f(...), in which every MoE layer takes its routes from here. A token that is missing is an error. What
-- the routers would have chosen otherwise is in `flips` afterwards: a list of { path, call, token, gap },
-- gap being how far apart the scores of the two choices are.
function Trace:replay(f, ...)
  self.flips = {}
  return during(self, set_replaying, f, ...)
end

local function next_call(activity, path)
  local n = (activity.calls[path] or 0) + 1
  activity.calls[path] = n
  return n
end

local function copied(ctype, from, count)
  local array = ffi.new(ctype .. '[?]', math.max(count, 1))
  if count > 0 then ffi.copy(array, from, count * ffi.sizeof(ctype)) end
  return array
end

-- ---- called by moe.Layer -------------------------------------------------------------------

local trace = {}

--- Adds a plan; token_ids i64 [tokens], contiguous.
---@param plan lumoe.Plan
function trace.add(path, plan, token_ids)
  if not recording then return end
  local layers = recording.trace.layers
  layers[path] = layers[path] or {}
  local n, top_k = plan.tokens, plan.top_k
  local ids, row_of = C.lm_plan_expert_ids(plan.pointer), C.lm_plan_row_of(plan.pointer)
  local call = { top_k = top_k, experts = plan.experts, tokens = n, row = {},
    ids = copied('int32_t', ids, n * top_k), dropped = ffi.new('uint8_t[?]', math.max(n * top_k, 1)) }
  for r = 0, n * top_k - 1 do call.dropped[r] = (ids[r] >= 0 and row_of[r] < 0) and 1 or 0 end
  local names = ffi.cast('const int64_t *', token_ids:data_ptr())
  for t = 0, n - 1 do call.row[tonumber(names[t])] = t end
  layers[path][next_call(recording, path)] = call
end

-- How far apart the scores are of two lists of experts; nil where they are the same.
local function gap(choice, chosen, taken, top_k)
  local widest
  for slot = 0, top_k - 1 do
    local a, b = chosen[slot], taken[slot]
    if a ~= b then
      widest = math.max(widest or 0, (a < 0 or b < 0) and math.huge or math.abs(choice[a] - choice[b]))
    end
  end
  return widest
end

-- Writes down where a router's own choice differs from the ids taken.
local function note_flips(path, n, choice, names, there, ids)
  local count, top_k = ids:size(0), ids:size(1)
  if choice.expert_ids:size(1) ~= top_k then
    error(("replay: router '%s' chooses %d experts, but in the trace it was %d"):format(path, choice.expert_ids:size(1), top_k), 0)
  end
  local own, scores = choice.expert_ids:to('i32'):contiguous(), choice.scores:detach():float():contiguous()
  local chosen, taken = ffi.cast('const int32_t *', own:data_ptr()), ffi.cast('const int32_t *', ids:data_ptr())
  local score, experts = ffi.cast('const float *', scores:data_ptr()), scores:size(1)
  for t = 0, count - 1 do
    local apart = (not there or there[t] ~= 0) and gap(score + t * experts, chosen + t * top_k, taken + t * top_k, top_k)
    if apart then
      table.insert(replaying.trace.flips, { path = path, call = n, token = tonumber(names[t]), gap = apart })
    end
  end
end

--- The routes to take instead of a router's choice: expert_ids [tokens, top_k] and priorities that keep
-- what was kept (double[]); nil where nothing is replayed. valid: u8 [tokens] or nil.
function trace.routes(path, choice, token_ids, valid)
  if not replaying then return nil end
  local n = next_call(replaying, path)
  local call = (replaying.trace.layers[path] or {})[n]
  if not call then error(("replay: the trace has no call %d of router '%s'"):format(n, path), 0) end
  local count, top_k = token_ids:numel(), call.top_k
  local names = ffi.cast('const int64_t *', token_ids:data_ptr())
  local there = valid and ffi.cast('const uint8_t *', valid:data_ptr())
  local ids, keep = ffi.new('int32_t[?]', math.max(count * top_k, 1), -1), ffi.new('double[?]', math.max(count * top_k, 1))
  for t = 0, count - 1 do
    local row = call.row[tonumber(names[t])]
    if not row and (not there or there[t] ~= 0) then
      error(("replay: call %d of router '%s' saw no token %.0f"):format(n, path, tonumber(names[t])), 0)
    end
    for slot = 0, row and top_k - 1 or -1 do
      local to, from = t * top_k + slot, row * top_k + slot
      ids[to], keep[to] = call.ids[from], 1 - call.dropped[from]
    end
  end
  local taken = tensor.from(ids, { count, top_k }, { dtype = 'i32' })
  note_flips(path, n, choice, names, there, taken)
  return taken, keep
end

-- ---- what it says --------------------------------------------------------------------------

local function sorted_keys(t)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

-- Calls f(path, number, call) for each, in order.
local function each(self, f)
  for _, path in ipairs(sorted_keys(self.layers)) do
    for n, call in ipairs(self.layers[path]) do f(path, n, call) end
  end
end

-- One route as a number: the expert, and whether it was dropped; -1 is no route.
local function route(call, row, slot)
  local r = row * call.top_k + slot
  return call.ids[r] < 0 and -1 or 2 * call.ids[r] + call.dropped[r]
end

local MULTIPLIER = 0x9e3779b97f4a7c15ULL

local function mix(h, word)
  h = bit.bxor(h, ffi.cast('uint64_t', word)) * MULTIPLIER
  return bit.bxor(h, bit.rshift(h, 29)) * 0xbf58476d1ce4e5b9ULL
end

--- A number of 64 bits that any layout has in common: the sum over the tokens of all ranks.
---@param group lumoe.Group?  nil: this rank's alone
---@return string  16 hex digits
function Trace:hash(group)
  local total = ffi.new 'int64_t[1]'
  each(self, function(path, n, call)
    local start = mix(n, call.top_k)
    for i = 1, #path do start = mix(start, path:byte(i)) end
    for token, row in pairs(call.row) do
      local h = mix(start, token)
      for slot = 0, call.top_k - 1 do h = mix(h, route(call, row, slot) + 1) end -- a negative number has no one image in 64 bits
      total[0] = total[0] + h
    end
  end)
  if group and group.size > 1 then
    checked(C.lm_all_reduce(group.pointer, total, 1, C.LM_I64, C.LM_REDUCE_SUM), total)
  end
  return bit.tohex(total[0])
end

-- ---- files ---------------------------------------------------------------------------------

--- Writes this rank's part: `router call experts token expert… `, a dropped route with a `-` behind it,
-- an empty slot as `.`.
function Trace:save(path)
  local file = assert(io.open(path, 'w'))
  each(self, function(name, n, call)
    for _, token in ipairs(sorted_keys(call.row)) do
      local words = { name, n, call.experts, ('%.0f'):format(token) }
      for slot = 0, call.top_k - 1 do
        local r = route(call, call.row[token], slot)
        words[#words + 1] = r < 0 and '.' or math.floor(r / 2) .. (r % 2 == 1 and '-' or '')
      end
      file:write(table.concat(words, ' '), '\n')
    end
  end)
  file:close()
end

local function read_line(lines, line, where)
  local words = {}
  for word in line:gmatch '%S+' do words[#words + 1] = word end
  local name, n, experts, token = words[1], tonumber(words[2]), tonumber(words[3]), tonumber(words[4])
  if not token then error(('%s: no route: %s'):format(where, line), 0) end
  lines[name] = lines[name] or {}
  local call = lines[name][n] or { top_k = #words - 4, experts = experts }
  lines[name][n] = call
  call[#call + 1] = { token = token, unpack(words, 5) }
end

local function pack_call(lines)
  local routes = #lines * lines.top_k
  local call = { top_k = lines.top_k, experts = lines.experts, tokens = #lines, row = {},
    ids = ffi.new('int32_t[?]', math.max(routes, 1), -1), dropped = ffi.new('uint8_t[?]', math.max(routes, 1)) }
  for i, line in ipairs(lines) do
    call.row[line.token] = i - 1
    for slot = 1, lines.top_k do
      local id, dropped = line[slot]:match '^(%d+)(%-?)$'
      local r = (i - 1) * lines.top_k + slot - 1
      call.ids[r], call.dropped[r] = tonumber(id) or -1, dropped == '-' and 1 or 0
    end
  end
  return call
end

--- The trace that one or more files hold (of several ranks: their union).
function trace.load(...)
  local lines, self = {}, new()
  for _, path in ipairs { ... } do
    for line in io.lines(path) do read_line(lines, line, path) end
  end
  for name, calls in pairs(lines) do
    self.layers[name] = {}
    for n, call in pairs(calls) do self.layers[name][n] = pack_call(call) end
  end
  return self
end

return setmetatable(trace, { __call = new })
