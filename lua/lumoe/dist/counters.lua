--- What was sent: bytes, messages and rows from this rank to each other one, or between hosts.
--
-- Every collective is counted, blocking or not, where its messages leave; a rank's own part is no
-- message. Rows are counted where somebody sends rows: the exchange of MoE layers.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local checked = require 'lumoe.dist.checked'
local group = require 'lumoe.dist.group'
local options = require 'lumoe.options'
local status = require 'lumoe.status'

local counters = {}

---@class lumoe.Traffic
---@field rank integer   to whom
---@field host integer   where that rank is
---@field bytes number
---@field messages number
---@field rows number

--- The number of a rank's host, from 0; of this one without a rank.
---@param rank integer?
function counters.host(rank)
  local host = C.lm_dist_host(rank or group.rank())
  status.check(host)
  return host
end

--- What this rank has sent, by receiver: entry r + 1 is that of rank r. `reset` then starts from zero.
---@param opts { reset: boolean? }?
---@return lumoe.Traffic[]
function counters.counters(opts)
  opts = options.check('counters', opts or {}, { reset = 'boolean?' })
  local size = group.world_size()
  local sent, list = ffi.new('lm_traffic[?]', size), {}
  status.check(C.lm_dist_counters(sent))
  for r = 0, size - 1 do
    local to = sent[r]
    list[r + 1] = { rank = r, host = counters.host(r), bytes = to.bytes, messages = to.messages, rows = to.rows }
  end
  if opts.reset then C.lm_dist_counters_reset() end
  return list
end

--- The same between hosts, added up over all ranks, which all call this: [from + 1][to + 1], with from
-- and to counted from 0. What ranks of one host send each other is in [h + 1][h + 1].
---@param list lumoe.Traffic[]?  what to add up; the default is dist.counters()
---@return { bytes: number, messages: number, rows: number }[][]
function counters.between_hosts(list)
  list = list or counters.counters()
  local hosts, here = 0, counters.host()
  for r = 0, group.world_size() - 1 do hosts = math.max(hosts, counters.host(r) + 1) end
  local sums = ffi.new('double[?]', hosts * hosts * 3)
  for _, to in ipairs(list) do
    local at = 3 * (here * hosts + to.host)
    sums[at], sums[at + 1], sums[at + 2] = sums[at] + to.bytes, sums[at + 1] + to.messages, sums[at + 2] + to.rows
  end
  checked(C.lm_all_reduce(nil, sums, hosts * hosts * 3, C.LM_F64, C.LM_REDUCE_SUM), sums)
  local pairs_of = {}
  for from = 0, hosts - 1 do
    pairs_of[from + 1] = {}
    for to = 0, hosts - 1 do
      local at = 3 * (from * hosts + to)
      pairs_of[from + 1][to + 1] = { bytes = sums[at], messages = sums[at + 1], rows = sums[at + 2] }
    end
  end
  return pairs_of
end

--- Seconds that this rank has spent waiting in collectives since it started.
function counters.waited() return C.lm_dist_waited() end

return counters
