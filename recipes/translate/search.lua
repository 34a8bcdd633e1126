--- Beam search (Sutskever et al. 2014, 3.2) with a cache, scores normalised by length as in Wu et al. 2016,
-- eq. 14: a hypothesis of n pieces is worth sum(log p) / ((5 + n) / 6) ^ alpha.
local lumoe = require 'lumoe'
local dist = lumoe.dist

local search = {}
local NEVER = -1e30

-- Caches and memory follow the hypotheses: row i becomes what row order[i] was.
local function reorder(caches, order)
  for _, cache in ipairs(caches) do
    for _, part in pairs(cache) do
      for _, side in ipairs { 'k', 'v' } do
        local before = part[side]
        part[side] = lumoe.keep(before:index_select(0, order))
        before:dispose()
      end
    end
  end
end

local function repeated(x, times) -- [B, ..] to [B · times, ..], each row `times` times
  local shape = x:shape_table()
  local wide = { shape[1], times, unpack(shape, 2) }
  local flat = { shape[1] * times, unpack(shape, 2) }
  return x:unsqueeze(1):expand(wide):reshape(flat)
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

  local memory = repeated((model:encode(batch.src, batch.src_tags)), beam)
  local memory_valid = repeated(batch.src_tags.valid, beam)
  local caches = {}
  for i = 1, #model.decoder do caches[i] = {} end

  -- At first only the first beam of each sentence is alive: the others would be copies of it.
  local scores = lumoe.full({ B, beam }, NEVER)
  if B > 0 then scores[{ {}, { 0, 1 } }] = 0 end
  local last = repeated(batch.start, beam):reshape(B * beam, 1)
  local live = {}   -- rows (s - 1) · beam to s · beam - 1 are the beams of sentence live[s]
  local pieces = {} -- row -> its pieces so far, as a linked list {before, piece}
  local best = {}   -- sentence -> { score, list }
  for b = 1, B do live[b] = b end

  -- One position: the 2 · beam best continuations of each sentence (so that beams remain when half of them
  -- end) as Lua numbers. What else it makes, logits above all, goes with its scope.
  local function continuations(position)
    local rows = #live * beam
    local x = model:decode(last, opts.tags and opts.tags(rows, position - 1), memory, memory_valid, caches)
    local log_p = model:logits(x):float():log_softmax(-1)
    local V = log_p:size(-1)
    local top, ids = (log_p:reshape(#live, beam, V) + scores:unsqueeze(2)):reshape(#live, beam * V):topk(2 * beam)
    return top:totable(), ids:totable(), V
  end

  local position = 0
  repeat
    position = position + 1
    local top_list, id_list, V = lumoe.scope(continuations, position)
    local norm = ((5 + position) / 6) ^ alpha
    local still, order, next_last, next_scores, next_pieces = {}, {}, {}, {}, {}
    for s, b in ipairs(live) do
      local kept, done = {}, position >= limits[b]
      for j = 1, 2 * beam do
        local score, id = top_list[s][j], id_list[s][j]
        local row, piece = (s - 1) * beam + math.floor(id / V), id % V
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
      if not done then still[#still + 1] = b end
    end
    local chosen = lumoe.tensor(order, { dtype = 'i32' })
    reorder(caches, chosen)
    if #still < #live then memory_valid = memory_valid:index_select(0, chosen) end
    last = lumoe.tensor(next_last, { dtype = 'i32' }):reshape(#order, 1)
    scores = lumoe.tensor(next_scores):reshape(#still, beam)
    live, pieces = still, next_pieces
  until dist.reduce_number(#live, 'max') == 0

  local hypotheses = {}
  for b = 1, B do hypotheses[b] = unwound(best[b].list) end
  return hypotheses
end

return search
