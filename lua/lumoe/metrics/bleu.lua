--- Corpus BLEU (Papineni et al. 2002) with one reference, equal to sacrebleu's defaults:
--
--   BLEU = BP · exp(1/4 · Σ log p_n),  p_n = clipped n-gram matches / n-grams of the hypotheses
--   BP   = exp(1 - ref_len / hyp_len) where the hypotheses are shorter, else 1
--
-- An order without a match counts as 1/2, 1/4, 1/8 … of one (smoothing `exp`); no match at all is 0.
local ffi = require 'ffi'
local tokenize = require 'lumoe.metrics.tokenize'
local ngrams = require 'lumoe.metrics.ngrams'
local options = require 'lumoe.options'

ffi.cdef 'int snprintf(char *, size_t, const char *, ...);'

local ORDER = 4
local SACREBLEU = '2.6.0' -- the version whose numbers are reproduced; tests/fixtures/sacrebleu proves it

---@class lumoe.Bleu
---@field score number       0 .. 100
---@field precisions number[]  per order, 0 .. 100
---@field counts integer[]   clipped matches per order
---@field totals integer[]   n-grams of the hypotheses per order
---@field bp number          brevity penalty
---@field hyp_len integer    tokens
---@field ref_len integer    tokens
---@field signature string   sacrebleu's: what anyone needs to get the same number
local Bleu = {}
Bleu.__index = Bleu

-- C's formatting, because LuaJIT's own rounds 6.25 to 6.3 where C and Python say 6.2.
local function fixed(value, digits)
  local buffer = ffi.new 'char[64]'
  ffi.C.snprintf(buffer, 64, '%.*f', ffi.cast('int', digits), ffi.cast('double', value))
  return ffi.string(buffer)
end

--- As sacrebleu prints it: `BLEU|<signature> = 31.52 60.1/… (BP = 1.000 ratio = … hyp_len = … ref_len = …)`.
function Bleu:__tostring()
  local precisions = {}
  for n = 1, ORDER do precisions[n] = fixed(self.precisions[n], 1) end
  local ratio = self.ref_len > 0 and self.hyp_len / self.ref_len or 0
  return ('BLEU|%s = %s %s (BP = %s ratio = %s hyp_len = %d ref_len = %d)'):format(
    self.signature, fixed(self.score, 2), table.concat(precisions, '/'), fixed(self.bp, 3), fixed(ratio, 3),
    self.hyp_len, self.ref_len)
end

local function brevity_penalty(hyp_len, ref_len)
  if hyp_len >= ref_len then return 1 end
  return hyp_len > 0 and math.exp(1 - ref_len / hyp_len) or 0
end

local function smoothed_precisions(counts, totals)
  local precisions, fraction = { 0, 0, 0, 0 }, 1
  if counts[1] == 0 then return precisions end -- no unigram, so nothing longer either
  for n = 1, ORDER do
    if totals[n] == 0 then break end
    local count = counts[n]
    if count == 0 then
      fraction = fraction / 2
      count = fraction
    end
    precisions[n] = 100 * count / totals[n]
  end
  return precisions
end

--- Corpus BLEU of hypotheses against one reference each.
---@param hyps string[]  detokenized sentences
---@param refs string[]
---@param opts? { tokenize: '13a'|'char' }  default `13a`
---@return lumoe.Bleu
local function bleu(hyps, refs, opts)
  ngrams.check_corpus('bleu', hyps, refs)
  options.check('bleu', opts or {}, { tokenize = 'string?' })
  local tokenizer = opts and opts.tokenize or '13a'
  if tokenizer ~= '13a' and tokenizer ~= 'char' then
    options.raise('bleu', "no tokenizer '%s'; there are '13a' and 'char'", tokenizer)
  end

  local tokens, ids = tokenize[tokenizer], ngrams.interner()
  local counts, totals, hyp_len, ref_len = { 0, 0, 0, 0 }, { 0, 0, 0, 0 }, 0, 0
  for i = 1, #hyps do
    local hyp, ref = ids(tokens(hyps[i])), ids(tokens(refs[i]))
    ngrams.match(hyp, ref, ORDER, counts)
    for n = 1, ORDER do totals[n] = totals[n] + math.max(#hyp - n + 1, 0) end
    hyp_len, ref_len = hyp_len + #hyp, ref_len + #ref
  end

  local bp, precisions = brevity_penalty(hyp_len, ref_len), smoothed_precisions(counts, totals)
  local product = precisions[1] * precisions[2] * precisions[3] * precisions[4]
  return setmetatable({
    score = bp * product ^ (1 / ORDER),
    precisions = precisions, counts = counts, totals = totals, bp = bp, hyp_len = hyp_len, ref_len = ref_len,
    signature = ('nrefs:1|case:mixed|eff:no|tok:%s|smooth:exp|version:%s'):format(tokenizer, SACREBLEU),
  }, Bleu)
end

return bleu
