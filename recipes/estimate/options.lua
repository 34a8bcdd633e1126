--- The command line of recipes/estimate.lua.
local parser = require 'recipes.parser'
local count = require('recipes.translate.options').count
local dist = require('lumoe').dist
local estimate = require('lumoe').estimate

local options = {}

local function names()
  local list = { 'here', 'none' }
  for name in pairs(estimate.hardware) do list[#list + 1] = name end
  table.sort(list)
  return list
end

local function number(text)
  local n = tonumber(text)
  if not n or n < 0 then return nil, ("'%s' is no number from 0"):format(text) end
  return n
end

-- 'once,two_level,parts=2' as a table of options (moe/exchange.lua).
local function exchange(text)
  local how = {}
  for word in text:gmatch '[^,%s]+' do
    local name, value = word:match '^(%w+)=([%d.]+)$'
    if word == 'once' then how.once = true
    elseif word == 'padded' or word == 'two_level' then how.way = word
    elseif name == 'parts' or name == 'shadow' then how[name] = tonumber(value)
    elseif word ~= 'rows' then return nil, ("no exchange '%s'"):format(word) end
  end
  return how
end

--- { model, mesh, batch } as lumoe.estimate takes them, precision, masters, moments, gradients, hardware, recompute,
-- overlap, json, paper, verify, times.
function options.parse(arguments)
  local p = parser('lumoe recipes/estimate.lua',
    'Predicts memory by purpose, bytes on each wire and time of a training step, for any number of ranks.')
  local function option(name, default, convert, text)
    return p:option(name, text):convert(convert):default(tostring(default))
      :argname 'N'
  end
  p:group('Model (that of recipes/translate.lua)',
    option('--dim', 512, count(1), 'Width'),
    option('--heads', 8, count(1), 'Attention heads'),
    option('--hidden', 2048, count(1), 'Width of a feed-forward part, and of an expert'),
    option('--vocab', 32000, count(1), 'Pieces of the tokenizer'),
    option('--encoder-layers', 6, count(1), 'Layers of the encoder'),
    option('--decoder-layers', 6, count(0), 'Layers of the decoder; 0: one stack over the source'),
    option('--experts', 8, count(1), 'Experts in every second layer; 1: a dense model'),
    option('--top-k', 1, count(1), 'Experts that see a token'),
    option('--capacity', 1.25, number, 'Capacity factor; 0: dropless'):argname 'F',
    p:option('--exchange', 'How rows travel to experts, of moe.Layer: rows, or any of once, padded or two_level, parts=N, shadow=F '
      .. 'with commas between', 'rows'):convert(exchange):argname 'HOW',
    option('--popularity', 0, number, "Experts' popularity by Zipf's law, with this exponent; 0: all alike"):argname 'S',
    option('--dropout', 0.1, number, 'Dropout'):argname 'P')
  p:group('Layout',
    option('--ranks', dist.world_size(), count(1), 'Ranks, as many as one likes'),
    option('--tp', 1, count(1), 'Ranks that share the same tokens'),
    option('--ep', 1, count(1), 'Ranks over which the experts are spread'),
    option('--etp', 1, count(1), 'Ranks that share an expert'),
    p:option('--on-host', 'Ranks that share a host (the devices of the hardware)'):convert(count(1)):argname 'N',
    option('--zero-dense', 0, count(0, 3), 'Stage of ZeRO for what is no expert'),
    option('--zero-expert', 0, count(0, 3), 'Stage of ZeRO for experts, over their replicas'),
    p:option('--offload', 'To the second tier: optimizer (with gradients and masters), or parameters too')
      :choices { 'optimizer', 'parameters' },
    p:flag('--recompute', 'Compute each layer again in backward, instead of keeping what it made'))
  p:group('Step',
    option('--sequences', 64, count(1), 'Sequences of a step, over all ranks'),
    option('--source', 64, count(1), 'Source positions of each'),
    option('--target', 64, count(1), 'Target positions of each'),
    option('--micro-batches', 1, count(1), 'Parts of a step'),
    p:option('--precision', 'f32 or bf16', 'bf16'):choices { 'f32', 'bf16' },
    p:flag('--no-masters', 'bf16 parameters without f32 masters'),
    p:option('--moments', "f32 or bf16: what AdamW's moments are kept in", 'f32'):choices { 'f32', 'bf16' },
    p:option('--gradients', "f32 or bf16: what those of experts' networks are kept in", 'f32'):choices { 'f32', 'bf16' })
  p:group('What for',
    p:option('--hardware', 'A machine by name; here: measured now; none: no times', 'a100-40'):choices(names()),
    p:flag('--overlap', 'Computing and moving at once, instead of one after the other'),
    p:flag('--paper', "The setting of arXiv 2109.10465, beside the paper's figures"),
    p:flag('--verify', 'Run small real steps on the ranks at hand; exit 1 where the planner is off'),
    p:flag('--times', 'Run real steps of several sizes, and print their times beside the predicted ones'),
    p:option('--only', 'Layouts of --verify, or sizes of --times, whose name has this text'):argname 'TEXT',
    option('--tolerance', 0.05, number, 'How far --verify lets memory be off'):argname 'SHARE',
    p:option('--json', 'Write the figures to a file'):argname 'FILE')

  local o = p:parse(arguments)
  if o.hardware == 'none' then o.hardware = nil end
  o.masters = not o.no_masters
  o.model = estimate.from_options(o)
  o.mesh = { ranks = o.ranks, tp = o.tp, ep = o.ep, etp = o.etp, offload = o.offload, on_host = o.on_host,
    zero = { dense = o.zero_dense, expert = o.zero_expert } }
  o.batch = { sequences = o.sequences, source = o.source, target = o.target, micro_batches = o.micro_batches }
  return o
end

return options
