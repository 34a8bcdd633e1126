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

-- How many pieces each sentence may have: its own affair, whatever the batch holds besides. And the most.
local function limits_of(batch, max_len)
  local limits, most = batch.src_tags.valid:float():sum(-1):totable(), 0
  for b, n in ipairs(limits) do
    limits[b] = max_len or math.floor(1.5 * n) + 10
    most = math.max(most, limits[b])
  end
  return limits, most
end

--- Translates one batch.
---@param model table    Translator, in evaluation
---@param batch table    src [B, S] i32, src_tags, start [B] i32 (first piece of each target)
---@param opts { beam: integer, eos: integer, alpha?: number, max_len?: integer, tags?: fun(rows, position): table }
---@return integer[][] hypotheses  pieces without start and eos
function search.beam(model, batch, opts)
  local beam, eos, alpha = opts.beam, opts.eos, opts.alpha or 0.6
  local B = batch.src:size(0)
  local limits, max_len = limits_of(batch, opts.max_len)
  local rows = B * beam

  local memory = model:encode(batch.src, batch.src_tags)
  memory = repeated(memory, beam)
  local memory_valid = repeated(batch.src_tags.valid, beam)
  local caches = {}
  for i = 1, #model.decoder do caches[i] = {} end

  -- At first only the first beam of each sentence is alive: the others would be copies of it.
  local scores = lumoe.full({ B, beam }, NEVER)
  scores[{ {}, { 0, 1 } }] = 0
  local last = repeated(batch.start, beam):reshape(rows, 1)
  local pieces = {} -- row -> its pieces so far, as a linked list {before, piece}
  local best = {}   -- sentence -> { score, list }
  local done = {}

  -- One position: the 2 · beam best continuations of each sentence (so that beams remain when half of them
  -- end) as Lua numbers. What else it makes, logits above all, goes with its scope.
  local function continuations(position)
    local x = model:decode(last, opts.tags and opts.tags(rows, position - 1), memory, memory_valid, caches)
    local log_p = model:logits(x):float():log_softmax(-1):reshape(B, beam, -1)
    local top, ids = (log_p + scores:unsqueeze(2)):reshape(B, -1):topk(2 * beam)
    return top:totable(), ids:totable(), log_p:size(2)
  end

  for position = 1, max_len do
    local top_list, id_list, V = lumoe.scope(continuations, position)
    local norm = ((5 + position) / 6) ^ alpha
    local order, next_last, next_scores, next_pieces, open = {}, {}, {}, {}, 0
    for b = 1, B do
      local kept = 0
      for j = 1, 2 * beam do
        local score, id = top_list[b][j], id_list[b][j]
        local row, piece = (b - 1) * beam + math.floor(id / V), id % V
        if score > NEVER / 2 and piece == eos then
          if j <= beam and (not best[b] or score / norm > best[b].score) then
            best[b] = { score = score / norm, list = pieces[row] }
          end
        elseif kept < beam then
          kept = kept + 1
          order[#order + 1], next_last[#next_last + 1] = row, piece
          next_scores[#next_scores + 1] = done[b] and NEVER or score
          next_pieces[(b - 1) * beam + kept - 1] = { before = pieces[row], piece = piece }
          -- No open beam is worth more than what has ended: the usual place to stop, although with alpha > 0
          -- a longer one could still win.
          if kept == 1 and best[b] and score / norm <= best[b].score then done[b] = true end
        end
      end
      if position == limits[b] then
        done[b] = true
        best[b] = best[b] or { score = -math.huge, list = next_pieces[(b - 1) * beam] }
      end
      if not done[b] then open = open + 1 end
    end
    pieces = next_pieces
    -- Experts may be on other ranks, so all go on until all are done.
    if dist.reduce_number(open, 'max') == 0 then break end
    reorder(caches, lumoe.tensor(order, { dtype = 'i32' }))
    last = lumoe.tensor(next_last, { dtype = 'i32' }):reshape(rows, 1)
    scores = lumoe.tensor(next_scores):reshape(B, beam)
  end

  local hypotheses = {}
  for b = 1, B do
    local node, reversed = best[b] and best[b].list, {}
    while node do
      reversed[#reversed + 1] = node.piece
      node = node.before
    end
    local list = {}
    for i = #reversed, 1, -1 do list[#list + 1] = reversed[i] end
    hypotheses[b] = list
  end
  return hypotheses
end

return search
