--- The products of expert layers, by themselves, against what the machine can multiply and add: y = x w, dx = dy w' and
-- dw = x' dy of both matrices of a SwiGLU expert (dim 512, hidden 2048), and all of them as one operation, as the layer has them.
local routing = require 'tests.bench.routing'

local MATRICES = { { 'up', 512, 4096 }, { 'down', 2048, 512 } } -- name, in, out

-- At their best settings: MKL told that the CPU is Intel's (f32 alone uses it).
local function peers(dtype, few)
  local list, intel = {}, dtype == 'f32'
  for _, name in ipairs(few and { 'loop' } or { 'loop', 'grouped' }) do
    list[#list + 1] = { name = 'torch ' .. name .. (intel and ', MKL told Intel' or ''), script = 'products', model = name, intel = intel }
  end
  return list
end

-- All forms of both matrices together: what a step of the layer has, once.
local function add_up(b, name, dtype, records, gflop_of)
  local totals, order = {}, {}
  for _, r in ipairs(records) do
    local peer = r.peer_name or ''
    if not totals[peer] then
      totals[peer] = { count = 0, gflop = 0, own = 0, other = 0 }
      order[#order + 1] = peer
    end
    local total, gflop = totals[peer], gflop_of[r]
    total.count, total.gflop = total.count + 1, total.gflop + gflop
    total.own, total.other = total.own + gflop / r.ours, total.other + gflop / (r.peer or 1)
  end
  for _, peer in ipairs(order) do
    local total = totals[peer]
    if total.count == 6 then
      b:add({ name = name, dtype = dtype, unit = 'GFLOP/s', ours = total.gflop / total.own,
        peer = peer ~= '' and total.gflop / total.other or nil, peer_name = peer ~= '' and peer or nil },
        function(limits) return total.gflop / total.own / limits[dtype] end)
    end
  end
end

return {
  title = 'Products of expert layers, 2,048 tokens, balanced; share of the FMA peak',
  minutes = { quick = 0.8, full = 5 },
  run = function(b)
    local tokens, shrunk = b:size(2048, 32), b:size(1, 64)
    local function layer(dtype, experts, top_k)
      local ids, records, gflop_of = routing.ids('balanced', tokens, experts, top_k), {}, {}
      for _, matrix in ipairs(MATRICES) do
        for _, form in ipairs { 'y', 'dx', 'dw' } do
          local inputs, outputs = matrix[2] / shrunk, matrix[3] / shrunk
          local gflop = 2e-9 * tokens * top_k * inputs * outputs
          local added = b:compare {
            name = ('%s %s E %d k %d'):format(matrix[1], form, experts, top_k), dtype = dtype,
            fields = { experts = experts, top_k = top_k, dtype = dtype }, quick = experts <= 32 and top_k == 2,
            job = { tokens = tokens, experts = experts, top_k = top_k, ids = ids, inputs = inputs, outputs = outputs, form = form,
              dtype = dtype },
            program = 'products', peers = peers(dtype, b.opts.quick or top_k == 8), unit = 'GFLOP/s', parts = { 'product' },
            value = function(_, result) return gflop / result.product * 1e3 end,
            limit = function(own, limits) return gflop / own.product * 1e3 / limits[dtype] end,
          }
          for _, record in ipairs(added) do records[#records + 1], gflop_of[record] = record, gflop end
        end
      end
      add_up(b, ('all E %d k %d'):format(experts, top_k), dtype, records, gflop_of)
    end
    -- As the layer has them: SwiGLU experts as one operation, forward and backward.
    local function network(dtype, experts, top_k)
      local dim, hidden = 512 / shrunk, 2048 / shrunk
      local gflop = 3 * 3 * 2e-9 * tokens * top_k * dim * hidden
      b:compare {
        name = ('as one operation E %d k %d'):format(experts, top_k), dtype = dtype,
        fields = { experts = experts, top_k = top_k, dtype = dtype }, quick = experts <= 32 and top_k == 2,
        job = { tokens = tokens, experts = experts, top_k = top_k, ids = routing.ids('balanced', tokens, experts, top_k),
          inputs = dim, outputs = hidden, form = 'all', dtype = dtype },
        program = 'products', unit = 'GFLOP/s', parts = { 'product' },
        value = function(_, result) return gflop / result.product * 1e3 end,
        limit = function(own, limits) return gflop / own.product * 1e3 / limits[dtype] end,
      }
    end
    for _, dtype in ipairs { 'f32', 'bf16' } do
      for _, experts in ipairs { 8, 32, 128 } do
        for _, top_k in ipairs { 1, 2, 8 } do
          if top_k > 1 then layer(dtype, experts, top_k) end
          network(dtype, experts, top_k)
        end
      end
    end
  end,
}
