--- Transformer layers, pre-norm: x + dropout(part(norm(x))) for each part (Xiong et al. 2020).
-- The feed-forward part is any module from [B, T, dim] to the same: nn.FeedForward, or a moe.Layer,
-- which also gets the tags and returns an auxiliary loss besides.
local module = require 'lumoe.nn.module'
local Attention = require 'lumoe.nn.attention'
local Dropout = require 'lumoe.nn.dropout'
local FeedForward = require 'lumoe.nn.feed_forward'
local LayerNorm = require 'lumoe.nn.layer_norm'
local RMSNorm = require 'lumoe.nn.rms_norm'
local recompute = require 'lumoe.nn.recompute'
local tensor = require 'lumoe.tensor'

local transformer = {}

local NORMS = { layer = LayerNorm, rms = RMSNorm }
local OPTIONS = { dim = true, heads = true, hidden = true, activation = true, dropout = true, norm = true,
  rope = true, feed_forward = true, recompute = true, mesh = true }

local function parts(self, opts)
  local norm = NORMS[opts.norm or 'layer']
  self.norm_self, self.norm_feed_forward = norm { opts.dim, mesh = opts.mesh }, norm { opts.dim, mesh = opts.mesh }
  self.self_attention = Attention { opts.dim, opts.heads, rope = opts.rope, mesh = opts.mesh }
  self.feed_forward = opts.feed_forward
    or FeedForward { opts.dim, opts.hidden, activation = opts.activation, mesh = opts.mesh }
  self.dropout = Dropout(opts.dropout or 0)
  self.recompute = opts.recompute == true
  return norm
end

-- Tensors that a layer made for itself are disposed of as soon as they were used: what backward reads of
-- them stays until then, and no longer.

-- An attention's part: x + dropout(attention(y)), and the norm of that. y, the norm of x, is used up.
local function attend(self, attention, x, y, opts, norm, tags)
  local h = attention(y, opts)
  y:dispose()
  local sum, normed = norm:residual(h, x, self.dropout, tags)
  h:dispose()
  return sum, normed
end

-- The last part; x and its norm y are used up. A dense part returns no auxiliary loss.
local function feed_forward(self, x, y, tags)
  local h, aux = self.feed_forward(y, tags)
  local sum = self.dropout:add(h, x, tags)
  x:dispose()
  if self.feed_forward._class == FeedForward then -- others may keep what they saw
    y:dispose()
    h:dispose()
  end
  return sum, aux
end

---@class lumoe.nn.TransformerEncoderLayer : lumoe.Module
local Encoder = module.class 'TransformerEncoderLayer'
transformer.EncoderLayer = Encoder

--- `{ dim=, heads=, hidden=, activation='relu', dropout=0, norm='layer'|'rms', rope=false, feed_forward=module,
-- recompute=false, mesh= }`; recompute: activations are forgotten after forward, and computed again in backward;
-- mesh: heads and hidden size are cut over its tensor group, and x is the same on all its ranks.
function Encoder:init(opts)
  tensor.options(opts, OPTIONS, 'nn.TransformerEncoderLayer')
  parts(self, opts)
end

--- tags.valid u8 [B, T]: 1 where a token is, 0 for padding; tags.tokens: ids for random draws.
---@param x lumoe.Tensor  [B, T, dim]
---@return lumoe.Tensor x, lumoe.Tensor? aux
function Encoder:forward(x, tags)
  if self.recompute then return recompute(self.block, self, x, tags) end
  return self:block(x, tags)
end

function Encoder:block(x, tags)
  local y
  x, y = attend(self, self.self_attention, x, self.norm_self(x), { key_mask = tags and tags.valid },
    self.norm_feed_forward, tags)
  return feed_forward(self, x, y, tags)
end

---@class lumoe.nn.TransformerDecoderLayer : lumoe.Module
local Decoder = module.class 'TransformerDecoderLayer'
transformer.DecoderLayer = Decoder

--- The options of the encoder's layer.
function Decoder:init(opts)
  tensor.options(opts, OPTIONS, 'nn.TransformerDecoderLayer')
  self.norm_cross = parts(self, opts) { opts.dim, mesh = opts.mesh }
  self.cross_attention = Attention { opts.dim, opts.heads, cross = true, mesh = opts.mesh }
end

--- memory: [B, S, dim] with memory_valid u8 [B, S], or fewer, each for as many rows of x in turn. cache: `{}` at first, for generation one position at a time.
---@return lumoe.Tensor x, lumoe.Tensor? aux
function Decoder:forward(x, tags, memory, memory_valid, cache)
  if self.recompute and not cache then return recompute(self.block, self, x, tags, memory, memory_valid) end
  return self:block(x, tags, memory, memory_valid, cache)
end

function Decoder:block(x, tags, memory, memory_valid, cache)
  if cache and not cache.own then cache.own, cache.cross = { length = 0 }, {} end
  local y, seen
  seen, y = attend(self, self.self_attention, x, self.norm_self(x), { causal = true, cache = cache and cache.own,
    key_mask = not cache and tags and tags.valid or nil }, self.norm_cross, tags)
  x, y = attend(self, self.cross_attention, seen, y, { memory = memory, key_mask = memory_valid,
    cache = cache and cache.cross }, self.norm_feed_forward, tags)
  seen:dispose()
  return feed_forward(self, x, y, tags)
end

return transformer
