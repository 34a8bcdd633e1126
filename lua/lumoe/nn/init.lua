--- Layers and the Module that they are.
local module = require 'lumoe.nn.module'
local transformer = require 'lumoe.nn.transformer'

local nn = {
  class = module.class,
  as = module.as,
  later = module.later,
  parameter = module.parameter,
  buffer = module.buffer,
  symbol = module.symbol,
  is_module = module.is_module,
  recompute = require 'lumoe.nn.recompute',
  Linear = require 'lumoe.nn.linear',
  Embedding = require 'lumoe.nn.embedding',
  LayerNorm = require 'lumoe.nn.layer_norm',
  RMSNorm = require 'lumoe.nn.rms_norm',
  Dropout = require 'lumoe.nn.dropout',
  MultiheadAttention = require 'lumoe.nn.attention',
  FeedForward = require 'lumoe.nn.feed_forward',
  cache = require 'lumoe.nn.cache',
  TransformerEncoderLayer = transformer.EncoderLayer,
  TransformerDecoderLayer = transformer.DecoderLayer,
}

--- Cross-entropy of logits [..., classes] against ids [...]: x:cross_entropy with the same options.
function nn.cross_entropy(logits, target, opts) return logits:cross_entropy(target, opts) end

return nn
