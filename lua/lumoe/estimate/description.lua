--- What is planned for: a model, a batch, a precision, with defaults and checks. No weights, no ranks.
--
-- The model is the translation recipe's, whose option names it takes: an encoder-decoder Transformer, pre-norm, one
-- embedding for source, target and output, an MoE part in every second layer counted from the last. With
-- decoder_layers = 0 it is one stack over the source, which also has the loss.
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local description = {}

local MODEL = {
  dim = 512, heads = 8, hidden = 2048, vocab = 32000, encoder_layers = 6, decoder_layers = 6,
  experts = 1, top_k = 1, capacity = 0, expert_hidden = false, moe_every = 2, activation = 'relu', expert_bias = false,
  dropout = 0.1, balance = 0.01, exchange = 'rows',
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

--- Options: dim, heads, hidden, vocab, encoder_layers, decoder_layers; experts (1: dense), top_k, capacity (factor;
-- 0: dropless), expert_hidden (as hidden), moe_every (2), expert_bias (false); activation, dropout, balance;
-- exchange: 'rows', or 'once', a token to each place once (moe/plan.lua).
function description.model(given)
  local self = numbers(given or {}, MODEL, 'estimate: model')
  self.expert_hidden = self.expert_hidden or self.hidden
  if self.top_k > self.experts then
    status.argument('estimate: model.top_k is %d, but there are %d experts', self.top_k, self.experts)
  end
  if self.exchange ~= 'rows' and self.exchange ~= 'once' then
    status.argument("estimate: model.exchange is 'rows' or 'once', not %s", tostring(self.exchange))
  end
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
