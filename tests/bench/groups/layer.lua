--- One MoE layer: forward, backward and AdamW, on routings that are the same for all.
--
-- swiglu, dropless: Hugging Face's Mixtral block and layers by hand. relu: DeepSpeed's layer, and ours as it, with capacity
-- 1.25, where routes over it are dropped, or dropless, where it pads every expert to the busiest one.
local measures = require 'tests.bench.measures'
local routing = require 'tests.bench.routing'

local TOKENS, DIM, HIDDEN = 2048, 512, 2048

-- Hugging Face's eager block fills and adds a gradient of all experts for each of them, a minute a step for 128.
local function peers_of(line)
  local names
  if line.activation == 'swiglu' then
    names = { 'hf_grouped', 'loop', 'loop_compiled', 'grouped', 'grouped_compiled' }
    if line.experts <= 32 or line.top_k == 2 and line.routing == 'balanced' then table.insert(names, 2, 'hf_eager') end
  elseif line.capacity then names = line.top_k == 1 and { 'ds', 'ds_rts' } or { 'ds' }
  else names = { 'ds_nodrop', 'loop', 'loop_compiled' } end
  if line.quick_run then
    names = line.activation == 'swiglu' and { 'hf_grouped', 'loop', 'grouped' } or { names[1] }
  end
  local peers = {}
  for _, name in ipairs(names) do
    peers[#peers + 1] = { name = name, script = 'layer', model = name }
    if line.dtype == 'f32' and name ~= 'hf_eager' then
      peers[#peers + 1] = { name = name .. ', MKL told Intel', script = 'layer', model = name, intel = true }
    end
  end
  return peers
end

local function compare(b, line)
  line.quick_run = b.opts.quick
  local quick = line.activation == 'swiglu' and line.top_k == 2 and line.experts <= 32
      and (line.routing == 'balanced' or line.experts == 32 and line.dtype == 'bf16')
    or line.capacity and line.experts == 8 and line.top_k == 1 and line.routing == 'balanced' or false
  local job = { dim = DIM, hidden = HIDDEN, tokens = TOKENS, experts = line.experts, top_k = line.top_k, dtype = line.dtype,
    activation = line.activation, capacity = line.capacity, routing = line.routing }
  if not b:wanted(line, quick) then return end
  job.ids = routing.ids(line.routing, TOKENS, line.experts, line.top_k)
  local busiest = routing.load(job.ids, line.experts)
  local matrices = line.activation == 'swiglu' and 3 or 2
  local flops = 3 * 2 * matrices * DIM * HIDDEN * TOKENS * line.top_k
  local capacity = line.capacity and math.ceil(line.capacity * TOKENS * line.top_k / line.experts)
  if capacity and busiest > capacity then flops = nil end -- dropped work is none
  b:compare {
    name = ('%s E %d k %d %s%s'):format(line.activation, line.experts, line.top_k, line.routing,
      line.capacity and ' capacity ' .. line.capacity or ''),
    dtype = line.dtype, fields = line, quick = quick, job = job, program = 'layer', peers = peers_of(line),
    unit = 'tokens/s', value = measures.per_second(TOKENS), parts = { 'forward', 'backward', 'update' },
    check = function(own)
      if own.busiest ~= busiest then error(('ours routed %d to its busiest expert, not %d'):format(own.busiest, busiest), 0) end
    end,
    limit = flops and function(own, limits) return flops / ((own.forward + own.backward) * 1e6) / limits[line.dtype] end,
  }
end

return {
  title = 'One MoE layer, forward + backward + AdamW: dim 512, hidden 2048, 2,048 tokens; share of the FMA peak without AdamW',
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
