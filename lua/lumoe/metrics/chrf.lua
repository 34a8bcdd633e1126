--- Corpus chrF2 (Popović 2015), equal to sacrebleu's defaults: the F-score, recall weighted twice, of the
-- mean precision and mean recall of character n-grams of orders 1 to 6, spaces removed. Orders that either
-- side lacks are left out of the means.
local tokenize = require 'lumoe.metrics.tokenize'
local ngrams = require 'lumoe.metrics.ngrams'

local ORDER, BETA = 6, 2
local SACREBLEU = '2.6.0'

---@class lumoe.Chrf
---@field score number      0 .. 100
---@field signature string  sacrebleu's
local Chrf = {}
Chrf.__index = Chrf

function Chrf:__tostring() return ('chrF2|%s = %.2f'):format(self.signature, self.score) end

local function f_score(matches, hyp_totals, ref_totals)
  local precision, recall, orders = 0, 0, 0
  for n = 1, ORDER do
    if hyp_totals[n] > 0 and ref_totals[n] > 0 then
      precision = precision + matches[n] / hyp_totals[n]
      recall = recall + matches[n] / ref_totals[n]
      orders = orders + 1
    end
  end
  if precision + recall == 0 then return 0 end
  precision, recall = precision / orders, recall / orders
  return 100 * (1 + BETA ^ 2) * precision * recall / (BETA ^ 2 * precision + recall)
end

--- Corpus chrF2 of hypotheses against one reference each.
---@param hyps string[]  detokenized sentences
---@param refs string[]
---@return lumoe.Chrf
local function chrf(hyps, refs)
  ngrams.check_corpus('chrf', hyps, refs)
  local ids = ngrams.interner()
  local matches, hyp_totals, ref_totals = {}, {}, {}
  for n = 1, ORDER do matches[n], hyp_totals[n], ref_totals[n] = 0, 0, 0 end
  for i = 1, #hyps do
    local hyp, ref = ids(tokenize.char(hyps[i])), ids(tokenize.char(refs[i]))
    ngrams.match(hyp, ref, ORDER, matches)
    for n = 1, ORDER do
      local of_ref = math.max(#ref - n + 1, 0)
      ref_totals[n] = ref_totals[n] + of_ref
      -- a sentence whose reference is too short for this order says nothing about precision
      if of_ref > 0 then hyp_totals[n] = hyp_totals[n] + math.max(#hyp - n + 1, 0) end
    end
  end
  return setmetatable({
    score = f_score(matches, hyp_totals, ref_totals),
    signature = ('nrefs:1|case:mixed|eff:yes|nc:%d|nw:0|space:no|version:%s'):format(ORDER, SACREBLEU),
  }, Chrf)
end

return chrf
