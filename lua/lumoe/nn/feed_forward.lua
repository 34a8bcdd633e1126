--- The dense feed-forward part of a Transformer layer: up, activation, down.
local module = require 'lumoe.nn.module'
local Linear = require 'lumoe.nn.linear'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local ACTIVATIONS = { relu = true, gelu = true, gelu_tanh = true, silu = true, swiglu = true }

---@class lumoe.nn.FeedForward : lumoe.Module
local FeedForward = module.class 'FeedForward'

--- `nn.FeedForward { dim, hidden, activation = 'relu', bias = true }`; swiglu (Shazeer 2020) has a
-- gate beside the up projection. Option mesh: the hidden size is cut over its tensor group.
function FeedForward:init(opts)
  tensor.options(opts, { true, true, activation = true, bias = true, mesh = true }, 'nn.FeedForward')
  self.activation = opts.activation or 'relu'
  if not ACTIVATIONS[self.activation] then
    status.argument("nn.FeedForward: no activation '%s'", tostring(self.activation))
  end
  local bias, wide = opts.bias ~= false, self.activation == 'swiglu' and 2 or 1
  self.up = Linear { opts[1], wide * opts[2], bias = bias, init = 'xavier', mesh = opts.mesh, split = 'columns', parts = wide }
  self.down = Linear { opts[2], opts[1], bias = bias, init = 'xavier', mesh = opts.mesh, split = 'rows' }
end

---@param x lumoe.Tensor  [..., dim]
---@return lumoe.Tensor   [..., dim]
function FeedForward:forward(x)
  local h
  if self.activation == 'relu' then h = self.up:relu(x)
  else
    local before = self.up(x)
    h = before[self.activation](before)
    before:dispose() -- but for what backward reads, it is of no more use; nor is h below
  end
  local y = self.down(h)
  h:dispose()
  return y
end

return FeedForward
