--- Beam search (Sutskever et al. 2014, 3.2) with a cache, scores normalised by length as in Wu et al. 2016,
-- eq. 14: a hypothesis of n pieces is worth sum(log p) / ((5 + n) / 6) ^ alpha.
local lumoe = require 'lumoe'
local dist = lumoe.dist

local search = {}
local NEVER = -1e30

-- Caches of the memory follow the sentences: row i becomes what row order[i] was.
local function keep_memories(caches, order)
  for _, cache in ipairs(caches) do
    for _, side in ipairs { 'k', 'v' } do
      local before = cache.cross[side]
      cache.cross[side] = lumoe.keep(before:index_select(0, order))
      before:dispose()
    end
  end
end

local function ids(list) return lumoe.tensor(list, { dtype = 'i32' }) end

-- Whether it is 0, 1, .. n - 1.
local function as_it_was(order, n)
  for i = 1, n do
    if order[i] ~= i - 1 then return false end
  end
  return #order == n
end

-- How many pieces each sentence may have: its own affair, whatever the batch holds besides.
local function limits_of(batch, max_len)
  local limits = batch.src_tags.valid:float():sum(-1):totable()
  for b, n in ipairs(limits) do limits[b] = max_len or math.floor(1.5 * n) + 10 end
  return limits
end

-- The pieces of a linked list {before, piece}, first to last.
local function unwound(node)
  local reversed, list = {}, {}
  while node do
    reversed[#reversed + 1] = node.piece
    node = node.before
  end
  for i = #reversed, 1, -1 do list[#list + 1] = reversed[i] end
  return list
end

--- Translates one batch, which may be empty. A sentence leaves it when it is done. Layers may need every rank
-- (experts of other ranks, gathered parameters), so all ranks call this alike, and one whose sentences are
-- done goes on without any until all are.
---@param model table    Translator, in evaluation
---@param batch table    src [B, S] i32, src_tags, start [B] i32 (first piece of each target)
---@param opts { beam: integer, eos: integer, alpha?: number, max_len?: integer, tags?: fun(rows, position): table }
---@return integer[][] hypotheses  pieces without start and eos
function search.beam(model, batch, opts)
  local beam, eos, alpha = opts.beam, opts.eos, opts.alpha or 0.6
  local B = batch.src:size(0)
  local limits = limits_of(batch, opts.max_len)

  local memory, memory_valid = model:encode(batch.src, batch.src_tags), batch.src_tags.valid
  local caches = {}
  for i = 1, #model.decoder do caches[i] = {} end

  -- At first only the first beam of each sentence is alive: the others would be copies of it.
  local scores = lumoe.full({ B, beam }, NEVER)
  if B > 0 then scores[{ {}, { 0, 1 } }] = 0 end
  local last = batch.start:unsqueeze(1):expand(B, beam):reshape(B * beam, 1)
  local live = {}   -- rows (s - 1) · beam to s · beam - 1 are the beams of sentence live[s]
  local pieces = {} -- row -> its pieces so far, as a linked list {before, piece}
  local best = {}   -- sentence -> { score, list }
  for b = 1, B do live[b] = b end

  -- One position: the 2 · beam best continuations of each sentence (so that beams remain when half of them
  -- end) as Lua numbers: their scores; where each is among the `width` best of its sentence's hypotheses; the pieces
  -- of those. What else it makes, logits above all, goes with its scope.
  local function continuations(position)
    local rows = #live * beam
    local x = model:decode(last, opts.tags and opts.tags(rows, position - 1), memory, memory_valid, caches)
    local logits = model:logits(x):select(1, 0):float()
    local width = math.min(2 * beam, logits:size(-1))
    local best_logits, candidates = logits:topk(width)
    local log_p = best_logits - logits:logsumexp(-1):unsqueeze(-1)
    local top, at = (log_p + scores:reshape(rows, 1)):reshape(#live, beam * width):topk(math.min(2 * beam, beam * width))
    return top:totable(), at:totable(), candidates:totable(), width
  end

  local position = 0
  repeat
    position = position + 1
    local top_list, at_list, candidates, width = lumoe.scope(continuations, position)
    local norm = ((5 + position) / 6) ^ alpha
    local still, stays, order, next_last, next_scores, next_pieces = {}, {}, {}, {}, {}, {}
    for s, b in ipairs(live) do
      local kept, done = {}, position >= limits[b]
      for j, score in ipairs(top_list[s]) do
        local row = (s - 1) * beam + math.floor(at_list[s][j] / width)
        local piece = candidates[row + 1][at_list[s][j] % width + 1]
        if score > NEVER / 2 and piece == eos then
          if j <= beam and (not best[b] or score / norm > best[b].score) then
            best[b] = { score = score / norm, list = pieces[row] }
          end
        elseif #kept < beam then
          kept[#kept + 1] = { row = row, score = score, list = { before = pieces[row], piece = piece } }
          -- No open beam is worth more than what has ended: the usual place to stop, although with alpha > 0
          -- a longer one could still win.
          if #kept == 1 and best[b] and score / norm <= best[b].score then done = true end
        end
      end
      best[b] = best[b] or done and { score = -math.huge, list = kept[1].list } or nil
      for _, hypothesis in ipairs(done and {} or kept) do
        order[#order + 1], next_last[#next_last + 1] = hypothesis.row, hypothesis.list.piece
        next_scores[#next_scores + 1], next_pieces[#order - 1] = hypothesis.score, hypothesis.list
      end
      if not done then still[#still + 1], stays[#stays + 1] = b, s - 1 end
    end
    if not as_it_was(order, #live * beam) then
      for _, cache in ipairs(caches) do lumoe.nn.cache.reorder(cache.own, ids(order)) end
    end
    if #still < #live then
      keep_memories(caches, ids(stays))
      memory_valid = memory_valid:index_select(0, ids(stays))
    end
    last = ids(next_last):reshape(#order, 1)
    scores = lumoe.tensor(next_scores):reshape(#still, beam)
    live, pieces = still, next_pieces
  until dist.reduce_number(#live, 'max') == 0

  local hypotheses = {}
  for b = 1, B do hypotheses[b] = unwound(best[b].list) end
  return hypotheses
end

return search
