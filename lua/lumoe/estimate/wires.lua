--- What a rank sends in each collective, as runtime/dist/collective.c does them: every byte goes straight from
-- the rank that has it to the one that needs it. Each returns bytes, messages.
local wires = {}

local SMALL = 16 * 1024

--- Every rank's `bytes` to all others.
function wires.all_gather(bytes, ranks) return bytes * (ranks - 1), ranks - 1 end

function wires.reduce_scatter(bytes, ranks) return bytes * (ranks - 1) / ranks, ranks - 1 end

--- A small one is an all-gather; a large one a reduce-scatter and an all-gather.
function wires.all_reduce(bytes, ranks)
  if ranks == 1 then return 0, 0 end
  if bytes <= SMALL then return wires.all_gather(bytes, ranks) end
  return 2 * bytes * (ranks - 1) / ranks, 2 * (ranks - 1)
end

--- What it takes of memory meanwhile.
function wires.all_reduce_scratch(bytes, ranks)
  if ranks == 1 then return 0 end
  return bytes <= SMALL and ranks * bytes or bytes + 4 * ranks
end

return wires
