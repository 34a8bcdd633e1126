-- Run by exchange_spec.lua over 2 ranks: with a plan in parts, rows of one part are under way while another is with the
-- experts, forward and backward; and an error there leaves nothing behind.
local lumoe = require 'lumoe'
local exchange = require 'lumoe.moe.exchange'
local plan = require 'lumoe.moe.plan'
local dist = lumoe.dist

local T, PARTS = 12, 3
local mesh = dist.mesh { ep = 2 }

local function make()
  local ids, tokens = {}, {}
  for t = 1, T do ids[t], tokens[t] = { t % 2 }, T * dist.rank() + t end -- every second row goes to the other rank
  return plan.new { router = 'overlap', tokens = T, top_k = 1, experts = 2, mesh = mesh,
    expert_ids = lumoe.tensor(ids, { dtype = 'i32' }), token_ids = lumoe.tensor(tokens, { dtype = 'i64' }),
    exchange = exchange({ parts = PARTS }, 'overlap') }
end

-- Rows that a leg has sent to the other rank so far.
local function sent(routed, leg) return routed:traffic()[leg].rows[2 - dist.rank()] end

local routed = make()
local x, w = lumoe.ones { T, 4 }, lumoe.ones { T, 1 }
x.requires_grad = true
local seen, seen_back = {}, {}
local y = routed:through(x, w, function(arrivals)
  seen[#seen + 1] = sent(routed, 'dispatch')
  return lumoe.custom {
    forward = function(_, a) return a * 2 end,
    backward = function(_, g)
      seen_back[#seen_back + 1] = { sent(routed, 'combine_backward'), sent(routed, 'dispatch_backward') }
      return g * 2
    end,
  }(arrivals)
end)
y:sum():backward()
assert(y:sum():item() == 2 * 4 * T and x.grad:sum():item() == 2 * 4 * T)

local each = T / 2 / PARTS -- rows of a part that leave
for i = 1, PARTS do -- the next one has left
  assert(seen[i] == math.min(i + 1, PARTS) * each, ('part %d: %d rows sent'):format(i, seen[i]))
end
for i = 1, PARTS do -- all gradients have left for the experts; those of the parts before are on their way home
  assert(seen_back[i][1] == T / 2, 'gradients of combine')
  assert(seen_back[i][2] == (i - 1) * each, 'gradients of dispatch')
end

-- A mistake in the experts, between two halves.
local live = lumoe.memory().live.exchange
for _ = 1, 3 do
  local again = make()
  local ok, message = pcall(again.through, again, x, w, function() error('a slip', 0) end)
  assert(not ok and message == 'a slip')
end
routed, y = nil, nil -- luacheck: ignore 311
collectgarbage()
collectgarbage()
assert(lumoe.memory().live.exchange <= live, 'something stayed')
local z = make():through(x, w, function(arrivals) return arrivals end)
assert(z:sum():item() == 4 * T)
if dist.rank() == 0 then print 'under way' end
