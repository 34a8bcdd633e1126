--- The command line of check_layouts, one option a line.
local parser = require 'recipes.parser'

local options = {}

local function number(low, high, whole)
  return function(text)
    local n = tonumber(text)
    if not n or n < low or n > high or (whole and n % 1 ~= 0) then
      return nil, ("'%s' is not %s %g to %g"):format(text, whole and 'a whole number from' or 'a number from', low, high)
    end
    return n
  end
end

function options.parse(arguments)
  local p = parser('lumoe recipes/check_layouts.lua',
    'Runs one batch under every layout that fits the ranks, and compares losses and gradients with one process.')
  local function option(name, default, low, high, text, fraction)
    p:option(name, text):convert(number(low, high, not fraction)):default(tostring(default))
      :argname(fraction and 'X' or 'N')
  end
  option('--dim', 32, 4, 1e5, 'Width of the model')
  option('--heads', 4, 1, 1e3, 'Attention heads')
  option('--hidden', 48, 1, 1e6, 'Width of a feed-forward part, and of an expert')
  option('--layers', 3, 1, 1000, 'Layers; every second one has experts, the last one too')
  option('--vocab', 64, 2, 1e6, 'Tokens there are')
  option('--experts', 8, 1, 1e5, 'Experts, of any number; 1: a dense model')
  option('--top-k', 2, 1, 1e4, 'Experts that see a token')
  option('--capacity', 1, 0, 1e6, 'Capacity factor; 0: dropless', true)
  p:option('--select', 'Who stays when an expert is full: random (RTS), position, probability', 'random')
    :choices { 'random', 'position', 'probability' }
  option('--noise', 0, 0, 100, "Scale of the noise on the router's logits", true)
  option('--dropout', 0.1, 0, 0.99, 'Dropout', true)
  option('--batch', 8, 1, 1e6, 'Sequences of a step')
  option('--time', 16, 1, 1e6, 'Tokens of a sequence')
  option('--seed', 1, 0, 1e9, 'Seed of everything random')
  option('--steps', 3, 1, 1e6, 'Training steps whose losses are compared')
  p:option('--only', 'Layouts whose name has this text, as ep2 or zero3'):argname 'TEXT'
  p:flag('--plain', 'Meshes alone: without ZeRO, offload, recomputation and micro-batches')
  p:flag('--recompute', 'Activation checkpointing in every layout')
  p:flag('--idle-rank', 'The first rank gets no tokens')
  p:flag('--one-expert', 'Every token goes to expert 0')
  p:option('--same-as', 'Results of --json of an earlier run: every layout must give its bits'):argname 'FILE'
  p:option('--json', 'Write the results there: a list of { layout, loss_rel, norm_rel, grad_rel, bytes, peak }'):argname 'FILE'

  local opts = p:parse(arguments)
  if opts.experts > 1 and opts.top_k > opts.experts then p:error(('--top-k %d: there are %d experts'):format(opts.top_k, opts.experts)) end
  if opts.dim % (2 * opts.heads) ~= 0 then
    p:error(('--dim %d does not divide into --heads %d of an even width'):format(opts.dim, opts.heads))
  end
  if opts.one_expert and opts.top_k > 1 then p:error '--one-expert: with --top-k 1' end
  return opts
end

return options
