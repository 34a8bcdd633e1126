--- What grows: tokens, experts, ranks. The layer is that of the group `layer`, without the optimizer; the peer is our own layer
-- before it grew, or before its routing was skewed, so that a ratio of 1 is none of the cost.
local measures = require 'tests.bench.measures'
local routing = require 'tests.bench.routing'
local sizes = require 'tests.bench.sizes'

local function layer(b, dtype, o)
  local job = { dim = b:size(512, 16), hidden = b:size(o.hidden or 2048, 8), tokens = b:size(o.tokens or 2048, 32), experts = o.experts,
    top_k = o.top_k, dtype = dtype, gradients = dtype, activation = 'swiglu', without_update = true }
  job.ids = routing.ids(o.routing or 'balanced', job.tokens, job.experts, job.top_k)
  return job
end

-- The least time forward and backward can take: multiplying and adding, or reading the weights of every expert that has
-- tokens twice and writing their gradients.
local function limit(job)
  return function(own, limits)
    local _, used = routing.load(job.ids, job.experts)
    local weights = 3 * job.dim * job.hidden
    local compute = 3 * 2 * weights * job.tokens * job.top_k / (limits[job.dtype] * 1e9)
    local bytes = weights * used * 3 * (job.dtype == 'bf16' and 2 or 4)
    local memory = bytes / (math.max(limits.read, limits.copy, limits.update) * 1e9)
    return math.max(compute, memory) / (own.ms / 1e3)
  end
end

local function compare(b, name, dtype, quick, o, base, base_name)
  local job = layer(b, dtype, o)
  b:compare {
    name = name, dtype = dtype, quick = quick, job = job, program = 'layer', unit = 'tokens/s',
    fields = { dtype = dtype, experts = o.experts, top_k = o.top_k, routing = o.routing },
    value = measures.per_second(job.tokens), limit = limit(job), parts = { 'forward', 'backward' },
    peers = base and { { name = 'lumoe, ' .. base_name, program = 'layer', job = layer(b, dtype, base) } } or nil,
  }
end

-- ---- ranks ---------------------------------------------------------------------------------

local MPIRUN = 'mpirun --allow-run-as-root --oversubscribe --bind-to none -np %d'

-- Steps of the recipe's model; what: further fields of a job.
local function job(b, precision, batches, what)
  local fields = { precision = precision, tiny = b.opts.tiny }
  for key, value in pairs(what) do fields[key] = value end
  return sizes.job('recipe', batches, fields)
end

-- Ranks of one thread beside another program.
local function compare_ranks(b, name, precision, batches, n, several, quick, peer)
  b:compare {
    name = name, dtype = precision, quick = quick, fields = { dtype = precision, batches = batches, model = 'recipe' },
    program = 'train_translator', job = several, launch = MPIRUN:format(n), threads = 1, cycle = #several.batches,
    unit = 'tokens/s', value = measures.per_second(sizes.tokens(several)), parts = { 'waited', 'loss' }, peers = { peer },
  }
end

local function ranks(b, precision, batches, ep)
  local n = math.max(2, b.opts.threads)
  compare_ranks(b, ('%d ranks of 1 thread, %s batches%s'):format(n, batches, ep and ', experts spread' or ''), precision, batches, n,
    job(b, precision, batches, { threads = 1, ep = ep and n or 1 }), batches == 'fixed' and precision == 'bf16' and ep,
    { name = ('lumoe, 1 rank of %d threads'):format(n), program = 'train_translator', threads = n,
      job = job(b, precision, batches, { threads = n, ep = 1 }) })
end

-- What moving while computing saves: gradients that leave during backward, and tokens that travel in parts.
local function overlap(b, precision)
  local n = math.max(2, b.opts.threads)
  local function pair(name, with, without, other)
    compare_ranks(b, ('%d ranks of 1 thread, %s'):format(n, name), precision, 'fixed', n, job(b, precision, 'fixed', with), false,
      { name = 'lumoe, ' .. other, program = 'train_translator', launch = MPIRUN:format(n), threads = 1,
        job = job(b, precision, 'fixed', without) })
  end
  pair('gradients leave in backward', { threads = 1 }, { threads = 1, gradients_after = true }, 'after it')
  pair('tokens travel in 2 parts', { threads = 1, ep = n, exchange = { parts = 2 } }, { threads = 1, ep = n }, 'in one')
end

-- One rank whose optimizer state is in a file: how its bytes move, and what it costs to have it there.
local function offload(b, precision)
  local function with(how) return job(b, precision, 'fixed', { ep = 1, offload = how }) end
  local ours = with 'optimizer'
  b:compare {
    name = 'optimizer offloaded', dtype = precision, fields = { dtype = precision, batches = 'fixed', model = 'recipe' },
    program = 'train_translator', job = ours, unit = 'tokens/s', value = measures.per_second(sizes.tokens(ours)),
    parts = { 'update', 'loss' },
    peers = { { name = 'lumoe, the file mapped', program = 'train_translator', job = with { to = 'optimizer', mapped = true } },
      { name = 'lumoe, in memory', program = 'train_translator', job = with(nil) } },
  }
end

return {
  title = 'Growth: forward and backward of the layer (share of what multiplying or memory allows); ranks: steps of the recipe',
  minutes = { quick = 0.7, full = 4 },
  run = function(b)
    for _, dtype in ipairs { 'f32', 'bf16' } do
      local bf16 = dtype == 'bf16'
      for _, tokens in ipairs { 128, 512, 2048, 8192 } do
        compare(b, ('%d tokens, E 8 k 2'):format(tokens), dtype, bf16, { tokens = tokens, experts = 8, top_k = 2 })
      end
      -- as many parameters work on a token: experts are more and smaller
      local few = { experts = 8, top_k = 2, hidden = 2048 }
      for _, o in ipairs { { experts = 32, top_k = 4, hidden = 1024 }, { experts = 128, top_k = 8, hidden = 512 },
        { experts = 512, top_k = 16, hidden = 256 }, { experts = 1024, top_k = 32, hidden = 128 } } do
        compare(b, ('E %d k %d hidden %d'):format(o.experts, o.top_k, o.hidden), dtype, bf16, o, few, 'E 8 k 2 hidden 2048')
      end
      for _, top_k in ipairs { 1, 2, 8 } do
        compare(b, ('E 128 k %d'):format(top_k), dtype, bf16 and top_k == 2, { experts = 128, top_k = top_k },
          { experts = 8, top_k = top_k }, 'E 8')
      end
      for _, experts in ipairs { 8, 32, 128 } do
        compare(b, ('E %d k 2 zipf'):format(experts), dtype, bf16, { experts = experts, top_k = 2, routing = 'zipf' },
          { experts = experts, top_k = 2 }, 'balanced')
      end
    end
    for _, precision in ipairs { 'f32', 'bf16' } do offload(b, precision) end
    if os.execute 'command -v mpirun >/dev/null' ~= 0 then return b:fail('ranks', 'lumoe', 'there is no mpirun') end
    for _, precision in ipairs { 'f32', 'bf16' } do
      for _, batches in ipairs { 'fixed', 'varying' } do
        ranks(b, precision, batches, false)
        ranks(b, precision, batches, true)
      end
      overlap(b, precision)
    end
  end,
}
