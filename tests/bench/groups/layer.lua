--- One MoE layer: forward, backward and AdamW, on routings that are the same for all.
--
-- swiglu, dropless: Hugging Face's Mixtral block and layers by hand. relu: DeepSpeed's layer, and ours as it, with capacity
-- 1.25, where routes over it are dropped, or dropless, where it pads every expert to the busiest one.
--
-- The peers' bf16 is all bf16, gradients and AdamW's moments too; so ours has bf16 gradients, and neither f32 masters nor f32
-- moments, but rounds both at random where PyTorch rounds to the nearest. Some lines have ours with all of these in f32 beside it.
local tablex = require 'pl.tablex'
local measures = require 'tests.bench.measures'
local routing = require 'tests.bench.routing'

-- Which peers a line has, as shipped, and with MKL told that the CPU is Intel's (f32 alone uses it): those that were the fastest of
-- some line of their kind when all were measured, and Hugging Face's default. Its eager block fills and adds a gradient of all
-- experts for each of them, seconds a step for 32: k = 2 stands for it. DeepSpeed's stand beside k = 1 and 2.
local function names_of(line, quick)
  local balanced = line.routing == 'balanced' and not quick
  if line.activation == 'relu' then
    local names = line.top_k == 8 and {} or line.capacity and { 'ds' } or { 'ds_nodrop' }
    if line.capacity and line.top_k == 1 and balanced then names[2] = 'ds_rts' end
    return line.dtype == 'f32' and {} or names, names
  end
  local eager = balanced and line.experts <= 32 and line.top_k == 2 and 'hf_eager' or nil
  if line.dtype == 'bf16' then
    return balanced and { 'hf_grouped', 'loop', 'grouped', 'grouped_compiled', eager } or { 'hf_grouped', 'loop', 'grouped' }, {}
  end
  if balanced then return { 'hf_grouped', 'loop', eager }, { 'hf_grouped', 'loop', 'loop_compiled' } end
  return { 'hf_grouped' }, { 'hf_grouped', 'loop' }
end

local function peers_of(line, quick)
  local peers, shipped, intel = {}, names_of(line, quick)
  for _, name in ipairs(shipped) do peers[#peers + 1] = { name = name, script = 'layer', model = name } end
  for _, name in ipairs(line.dtype == 'f32' and intel or {}) do
    peers[#peers + 1] = { name = name .. ', MKL told Intel', script = 'layer', model = name, intel = true }
  end
  return peers
end

local function compare(b, line)
  local quick = line.activation == 'swiglu' and line.top_k == 2 and line.experts <= 32
      and (line.routing == 'balanced' or line.experts == 32 and line.dtype == 'bf16')
    or line.capacity and line.experts == 8 and line.top_k == 1 and line.routing == 'balanced' or false
  local dim, hidden, tokens = b:size(512, 16), b:size(2048, 32), b:size(2048, 32)
  local job = { dim = dim, hidden = hidden, tokens = tokens, experts = line.experts, top_k = line.top_k, dtype = line.dtype,
    activation = line.activation, capacity = line.capacity, masters = line.dtype == 'f32', moments = line.dtype, gradients = line.dtype }
  if not b:wanted(line, quick) then return end
  job.ids = routing.ids(line.routing, tokens, line.experts, line.top_k)
  local busiest = routing.load(job.ids, line.experts)
  local matrices = line.activation == 'swiglu' and 3 or 2
  local flops = 3 * 2 * matrices * dim * hidden * tokens * line.top_k
  local capacity = line.capacity and math.ceil(line.capacity * tokens * line.top_k / line.experts)
  if capacity and busiest > capacity then flops = nil end -- dropped work is none
  local peers = peers_of(line, b.opts.quick)
  if not job.masters and line.activation == 'swiglu' and line.routing == 'balanced' and not b.opts.quick then
    peers[#peers + 1] = { name = 'lumoe, with f32 masters', program = 'layer',
      job = tablex.update(tablex.copy(job), { masters = true, moments = 'f32', gradients = 'f32' }) }
  end
  b:compare {
    name = ('%s E %d k %d %s%s'):format(line.activation, line.experts, line.top_k, line.routing,
      line.capacity and ' capacity ' .. line.capacity or ''),
    dtype = line.dtype, fields = line, quick = quick, job = job, program = 'layer', peers = peers,
    unit = 'tokens/s', value = measures.per_second(tokens), parts = { 'forward', 'backward', 'update' },
    check = function(own)
      if own.busiest ~= busiest then error(('ours routed %d to its busiest expert, not %d'):format(own.busiest, busiest), 0) end
    end,
    limit = flops and function(own, limits) return flops / ((own.forward + own.backward) * 1e6) / limits[line.dtype] end,
  }
end

return {
  title = 'One MoE layer, forward + backward + AdamW: dim 512, hidden 2048, 2,048 tokens; share of the FMA peak without AdamW',
  minutes = { quick = 2.2, full = 28 },
  run = function(b)
    for _, kind in ipairs { { 'swiglu' }, { 'relu', 1.25 }, { 'relu' } } do
      for _, dtype in ipairs { 'f32', 'bf16' } do
        for _, experts in ipairs { 8, 32, 128 } do
          for _, top_k in ipairs { 1, 2, 8 } do
            for _, how in ipairs { 'balanced', 'zipf' } do
              compare(b, { activation = kind[1], capacity = kind[2], dtype = dtype, experts = experts, top_k = top_k, routing = how })
            end
          end
        end
      end
    end
  end,
}
