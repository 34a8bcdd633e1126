--- Our collectives on every rank of a job; rank 0 prints the times as a line of JSON. Arguments: seconds for each
-- measurement, then what to measure, as 'all_reduce f32 1048576' (the bytes that a rank puts in).
-- peers/mpi_bench.c and peers/gloo.py do the same.
--
-- A time is that of the slowest rank, from a barrier on; the answer has medians, in ms.
local ffi = require 'ffi'
local json = require 'cjson'
local lumoe = require 'lumoe'
local C = require 'lumoe.ffi'
local check = require('lumoe.status').check
local clock = require('lumoe.log.terminal').clock
local turns = require 'tests.bench.turns'

local ranks, rank = C.lm_dist_world_size(), C.lm_dist_rank()
local DTYPE = { f32 = C.LM_F32, bf16 = C.LM_BF16 }

-- Bytes from every rank to each: even, or to rank r as 1 / (r + 1).
local function shares(bytes, zipf)
  local sum, list = 0, ffi.new('int64_t[?]', ranks)
  for r = 1, ranks do sum = sum + (zipf and 1 / r or 1) end
  for r = 1, ranks do list[r - 1] = math.floor(bytes * (zipf and 1 / r or 1) / sum / 4096) * 4096 end
  return list
end

local function all_to_all(zipf)
  return function(bytes, _, from, to)
    local sends, receives = shares(bytes, zipf), ffi.new('int64_t[?]', ranks)
    for r = 0, ranks - 1 do receives[r] = sends[rank] end
    return function() check(C.lm_all_to_all_v(nil, from, sends, to, receives)) end
  end
end

local collectives = {
  all_to_all = all_to_all(false),
  all_to_all_zipf = all_to_all(true),
  all_reduce = function(bytes, dtype, from)
    local count = bytes / C.lm_dtype_size(dtype)
    return function() check(C.lm_all_reduce(nil, from, count, dtype, C.LM_REDUCE_SUM)) end
  end,
  reduce_scatter = function(bytes, dtype, from, to)
    local count = bytes / C.lm_dtype_size(dtype) / ranks
    return function() check(C.lm_reduce_scatter(nil, from, count, dtype, C.LM_REDUCE_SUM, to)) end
  end,
  all_gather = function(bytes, _, from, to)
    return function() check(C.lm_all_gather(nil, from, bytes / ranks, to)) end
  end,
}

local longest = ffi.new 'double[1]'
local function time(run)
  check(C.lm_barrier(nil))
  local begun = clock()
  run()
  longest[0] = clock() - begun
  check(C.lm_all_reduce(nil, longest, 1, C.LM_F64, C.LM_REDUCE_MAX))
  return longest[0] * 1e3
end

local function measure(seconds, run)
  local once = math.max(time(run), time(run))
  local list = {}
  for i = 1, math.max(5, math.min(200, math.floor(seconds * 1e3 / once))) do list[i] = time(run) end
  return turns.median(list)
end

local seconds, results = tonumber(arg[1]), {}
for i = 2, #arg do
  local name, dtype, bytes = arg[i]:match '(%S+) (%S+) (%d+)'
  bytes = tonumber(bytes)
  local from, to = lumoe.zeros({ bytes }, { dtype = 'u8' }), lumoe.zeros({ bytes * ranks }, { dtype = 'u8' })
  results[i - 1] = measure(seconds, collectives[name](bytes, DTYPE[dtype], from:data_ptr(), to:data_ptr()))
  from:dispose()
  to:dispose()
end
if rank == 0 then print(json.encode(results)) end
