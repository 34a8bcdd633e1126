--- What is planned for: a model, a batch, a precision, with defaults and checks. No weights, no ranks.
--
-- The model is the translation recipe's, whose option names it takes: an encoder-decoder Transformer, pre-norm, one
-- embedding for source, target and output, an MoE part in every second layer counted from the last. With
-- decoder_layers = 0 it is one stack over the source, which also has the loss.
local exchange = require 'lumoe.moe.exchange'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local description = {}

local MODEL = {
  dim = 512, heads = 8, hidden = 2048, vocab = 32000, encoder_layers = 6, decoder_layers = 6,
  experts = 1, top_k = 1, capacity = 0, expert_hidden = false, moe_every = 2, activation = 'relu', expert_bias = false,
  dropout = 0.1, balance = 0.01, exchange = 'rows', popularity = false,
}
local BATCH = { sequences = 64, source = 64, target = 64, micro_batches = 1 }

local function numbers(given, defaults, what)
  local known, self = {}, {}
  for name in pairs(defaults) do known[name] = true end
  tensor.options(given, known, what)
  for name, default in pairs(defaults) do
    local value = given[name]
    if value == nil then value = default end
    if type(default) == 'number' and (type(value) ~= 'number' or value ~= value or value < 0) then
      status.argument('%s.%s must be a number from 0, not %s', what, name, tostring(value))
    end
    self[name] = value
  end
  return self
end

-- A list with a number above 0 for each expert; s: Zipf's law, expert e as popular as (e + 1)^-s.
local function popularity(given, experts)
  if not given or given == 0 then return false end
  local list = given
  if type(given) == 'number' then
    list = {}
    for e = 1, experts do list[e] = e ^ -given end
  end
  if type(list) ~= 'table' or #list ~= experts then
    status.argument('estimate: model.popularity must be a number or have one for each of %d experts', experts)
  end
  for _, w in ipairs(list) do
    if type(w) ~= 'number' or w <= 0 then status.argument('estimate: model.popularity has %s', tostring(w)) end
  end
  return list
end

--- Options: dim, heads, hidden, vocab, encoder_layers, decoder_layers; experts (1: dense), top_k, capacity (factor;
-- 0: dropless), expert_hidden (as hidden), moe_every (2), expert_bias (false); activation, dropout, balance;
-- exchange: how rows travel, as moe.Layer has it (moe/exchange.lua); popularity: of the experts (estimate/routing.lua), a list
-- or the exponent of Zipf's law; false: all alike.
function description.model(given)
  local self = numbers(given or {}, MODEL, 'estimate: model')
  self.expert_hidden = self.expert_hidden or self.hidden
  if self.top_k > self.experts then
    status.argument('estimate: model.top_k is %d, but there are %d experts', self.top_k, self.experts)
  end
  self.exchange = exchange(self.exchange, 'estimate: model')
  self.popularity = popularity(self.popularity, self.experts)
  if self.encoder_layers < 1 then status.argument 'estimate: model.encoder_layers must be at least 1' end
  self.has_experts = function(i, n) return self.experts > 1 and (n - i) % self.moe_every == 0 end
  return self
end

--- Only what a model needs, out of a table with more: the options of recipes/translate.lua, say.
function description.from_options(opts)
  local picked = {}
  for name in pairs(MODEL) do picked[name] = opts[name] end
  return picked
end

--- The batch of a step over all ranks: sequences of source and target positions, padding included.
function description.batch(given)
  local self = numbers(given or {}, BATCH, 'estimate: batch')
  for name in pairs(BATCH) do
    if self[name] < 1 then status.argument('estimate: batch.%s must be at least 1', name) end
  end
  return self
end

return description
