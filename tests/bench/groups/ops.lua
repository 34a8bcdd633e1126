--- Small operations, which cost what the host costs; operations with work to do, forward and backward; the time from the
-- program's start to the first tensor.
local measures = require 'tests.bench.measures'
local turns = require 'tests.bench.turns'

local SMALL = { 'x + 1', 'x + x', 'x * row', 'relu', 'softmax', 'layer_norm', 'sum', 'transpose', 'x[1]', 'reshape', 'index_select',
  'linear' }
local FEW = { ['x + 1'] = true, ['x + x'] = true, softmax = true, reshape = true }
local LARGE = { 'linear', 'add', 'gelu', 'swiglu', 'layer_norm', 'rms_norm', 'softmax', 'attention', 'embedding', 'cross_entropy' }

return {
  title = 'Operations: nanoseconds of one on 6 elements, 1 thread; milliseconds of one with work to do, forward and backward',
  minutes = { quick = 0.5, full = 2 },
  run = function(b)
    b:compare {
      name = 'start to first tensor', dtype = '', quick = true, program = 'start', unit = 'ms', value = measures.ms(),
      job = { command = ('%s -e "require(\'lumoe\').zeros(2, 3)"'):format(turns.quote(b.opts.lumoe)) },
      peers = { { name = 'torch', script = 'start' } },
    }
    for _, recorded in ipairs { false, true } do
      for _, op in ipairs(SMALL) do
        b:compare {
          name = op .. (recorded and ', recorded' or ''), dtype = 'f32', quick = FEW[op], fields = { dtype = 'f32' },
          program = 'ops', threads = 1, job = { op = op, recorded = recorded, tiny = b.opts.tiny },
          unit = 'ns', value = function(ms, result) return measures.ns(result.calls)(ms) end,
          peers = { { name = 'torch', script = 'ops' } },
        }
      end
    end
    for _, dtype in ipairs { 'f32', 'bf16' } do
      for _, op in ipairs(LARGE) do
        b:compare {
          name = op .. ', forward and backward', dtype = dtype, fields = { dtype = dtype }, program = 'ops',
          job = { op = op, dtype = dtype, tiny = b.opts.tiny }, unit = 'ms', parts = { 'forward', 'backward' },
          value = function(ms, result) return measures.ms(result.calls)(ms) end,
          peers = { { name = 'torch', script = 'ops' } },
        }
      end
    end
  end,
}
