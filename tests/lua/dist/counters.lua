-- Run by counters_spec.lua on four ranks, with LUMOE_HOSTS=1,3: what is counted, against hand counts.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'
local dist = lumoe.dist
local check = require('lumoe.status').check
local rank, size = dist.rank(), dist.world_size()
assert(size == 4)
dist.world() -- making a group costs messages too

assert(dist.host(0) == 0 and dist.host(1) == 1 and dist.host(3) == 1)
assert(dist.host() == (rank == 0 and 0 or 1))
assert(dist.local_size() == (rank == 0 and 1 or 3) and dist.local_rank() == math.max(rank - 1, 0))
assert(C.lm_dist_host(4) == C.LM_EARG)

--- What f sends, by receiver.
local function sent(f)
  dist.counters { reset = true }
  f()
  return dist.counters { reset = true }
end

local function expect(list, bytes, messages)
  for r = 0, size - 1 do
    local to = list[r + 1]
    assert(to.rank == r and to.host == dist.host(r))
    assert(to.bytes == (r == rank and 0 or bytes(r)), ('%d bytes to rank %d'):format(to.bytes, r))
    assert(to.messages == (r == rank and 0 or messages(r)), ('%d messages to rank %d'):format(to.messages, r))
  end
end
local function one() return 1 end

-- Exact rows, of 40 bytes: a rank sends (its number + the receiver's) of them; none is no message.
local sends, receives = ffi.new 'int64_t[4]', ffi.new 'int64_t[4]'
local rows = ffi.new 'int64_t[4]'
for r = 0, 3 do
  rows[r] = rank + r
  sends[r], receives[r] = 40 * (rank + r), 40 * (rank + r)
end
local from, to = ffi.new 'char[1000]', ffi.new 'char[1000]'
local function some(r) return rank + r > 0 and 1 or 0 end
local exchange = sent(function()
  check(C.lm_all_to_all_v(nil, from, sends, to, receives))
  check(C.lm_dist_count_rows(nil, rows))
end)
expect(exchange, function(r) return 40 * (rank + r) end, some)
for r = 0, 3 do assert(exchange[r + 1].rows == (r == rank and 0 or rank + r)) end

-- The same without waiting.
expect(sent(function()
  local out = ffi.new 'lm_async *[1]'
  check(C.lm_all_to_all_v_start(nil, from, sends, to, receives, out))
  check(C.lm_async_wait(out[0]))
end), function(r) return 40 * (rank + r) end, some)

-- A small sum: everyone its numbers to everyone. A large one: each a quarter to its owner, and its own to all.
expect(sent(function() dist.all_reduce(lumoe.full({ 10 }, 1)) end), function() return 40 end, one)
expect(sent(function() dist.all_reduce(lumoe.full({ 100000 }, 1)) end), function() return 200000 end,
  function() return 2 end)

-- Between hosts: 0 alone, 1 to 3 together.
local pairs_of = dist.between_hosts(exchange)
local function is(from_host, to_host, count, messages)
  local pair = pairs_of[from_host + 1][to_host + 1]
  assert(pair.rows == count and pair.bytes == 40 * count and pair.messages == messages,
    ('%d -> %d: %d rows'):format(from_host, to_host, pair.rows))
end
is(0, 0, 0, 0)
is(0, 1, 1 + 2 + 3, 3)
is(1, 0, 1 + 2 + 3, 3)
is(1, 1, 2 * (3 + 4 + 5), 6)
if rank == 0 then print 'all well' end
