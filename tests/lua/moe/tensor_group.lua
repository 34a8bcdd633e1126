-- Run by layouts_spec.lua on two and four ranks: an MoE layer between layers that a tensor group shares, beside
-- the same on this rank alone. What a batch can be: any number of tokens, also one or none; what a layer
-- can do besides: recompute, replay, priorities from Lua, a bias of the experts.
package.path = './?.lua;' .. package.path
local lumoe = require 'lumoe'
local random = require 'lumoe.random'
local part_of = require 'tests.lua.dist.part'
local dist, moe, nn = lumoe.dist, lumoe.moe, lumoe.nn
local DIM, EXPERTS = 8, 3

local seen -- tokens in a choice that a balancer saw
local function spread(choice, batch)
  seen = choice.expert_ids:size(0)
  local first = choice.expert_ids:narrow(1, 0, 1):float():clamp(0):to 'i64' -- a replayed choice has -1 for padding
  local chosen = choice.scores:gather(1, first)
  return batch:mean(chosen:squeeze(1)) * 0.1
end

local Model = nn.class 'Model'
function Model:init(mesh, opts)
  self.first = nn.FeedForward { DIM, 12, mesh = mesh }
  self.moe = moe.Layer { dim = DIM, router = moe.routers.noisy_top_k { dim = DIM, top_k = 2 }, mesh = mesh,
    experts = moe.FFN { experts = EXPERTS, hidden = 5, activation = opts.activation, bias = true },
    capacity = { factor = 0.8, select = opts.select }, recompute = opts.recompute,
    balance = { moe.balance.load(0.05), spread } }
  self.last = nn.FeedForward { DIM, 12, mesh = mesh }
end
function Model:forward(x, tags)
  local y, aux = self.moe(self.first(x), tags)
  return self.last(y), aux
end

local function length(t) return math.sqrt(t:float():square():sum():item()) end

-- loss, and the gradients by name
local function run(model, x, tags, share)
  random.step(3)
  local y, aux = model(x, tags)
  local loss = (y + 1):square():sum() * share + aux -- nothing cancels
  loss:backward()
  dist.reduce_gradients(model)
  local norm, grads = dist.grad_norm(model), {}
  for _, p in ipairs(model:named_parameters()) do grads[p.name], p.tensor.grad = p.tensor.grad, nil end
  return loss:item(), norm, grads
end

local function by_score(choice) -- priorities of every token, whoever holds it
  return choice.scores:gather(1, choice.expert_ids:to 'i64') * -1
end

local alone = dist.mesh { ranks = { dist.rank() } }
local function check(layout, tokens, opts)
  local mesh = dist.mesh(layout)
  local name = ('%s, %d tokens'):format(tostring(mesh), tokens)
  lumoe.manual_seed(8)
  local whole, cut = Model(alone, opts), Model(mesh, opts)
  whole:initialize()
  cut:initialize()
  -- Every part of the batch is the same, so that the whole is not in need of communication.
  local x, parts = lumoe.randn(tokens, DIM), {}
  for i = 1, mesh.dp do parts[i] = x end
  local all, total = lumoe.cat(parts, 0), tokens * mesh.dp
  local first = mesh.data.rank * tokens
  local tags = { tokens = lumoe.arange(total), valid = lumoe.ones(total, { dtype = 'u8' }) }
  if total > 2 then tags.valid[1] = 0 end
  local own = { tokens = tags.tokens:narrow(0, first, tokens), valid = tags.valid:narrow(0, first, tokens) }

  local function compare(loss, norm, grads)
    local want, want_norm, want_grads = run(whole, all, tags, 1 / math.max(total, 1))
    assert(seen == total)
    assert(math.abs(loss - want) <= 1e-6 * math.max(math.abs(want), 1e-3), ('%s: loss %.9g, not %.9g'):format(name, loss, want))
    assert(math.abs(norm - want_norm) <= 1e-6 * want_norm, ('%s: norm %.9g, not %.9g'):format(name, norm, want_norm))
    for _, p in ipairs(cut:named_parameters()) do
      local g = want_grads[p.name]
      local apart = length(part_of(g, p) - grads[p.name])
      assert(apart <= 1e-5 * math.max(length(g), 1e-3 * want_norm), ('%s: %s is off by %g of %g'):format(name, p.name, apart, length(g)))
      if p.spec.group == 'dense' and not p.spec.at then
        local other = dist.broadcast(grads[p.name]:clone(), 0, mesh.tensor)
        assert((other - grads[p.name]):abs():sum():item() == 0, p.name .. ' differs over tp')
      end
    end
  end

  local trace, loss, norm, grads = moe.trace(), nil, nil, nil
  trace:record(function() loss, norm, grads = run(cut, all:narrow(0, first, tokens), own, 1 / math.max(total, 1)) end)
  assert(seen == tokens)
  compare(dist.reduce_number(loss, 'sum', mesh.data), norm, grads)
  local dropped = cut.moe.last_plan:dropped()
  assert(dropped == whole.moe.last_plan:dropped())
  assert(cut.moe:stats().tokens == whole.moe:stats().tokens)
  -- The same again from the trace, which knows each rank's share alone.
  trace:replay(function() loss, norm, grads = run(cut, all:narrow(0, first, tokens), own, 1 / math.max(total, 1)) end)
  assert(#trace.flips == 0 and cut.moe.last_plan:dropped() == dropped)
  compare(dist.reduce_number(loss, 'sum', mesh.data), norm, grads)
  return dropped
end

local size, dropped = dist.world_size(), 0
local layouts = size == 2 and { { tp = 2 }, { tp = 2, ep = 2 }, { tp = 2, etp = 2 }, { etp = 2 } }
  or { { tp = 2, ep = 2 }, { tp = 4, ep = 2, etp = 2 } }
for _, layout in ipairs(layouts) do
  for _, tokens in ipairs { 11, 3, 1, 0 } do
    dropped = dropped + check(layout, tokens, { activation = 'swiglu', select = 'random', recompute = true })
    dropped = dropped + check(layout, tokens, { activation = 'relu', select = by_score })
  end
end
assert(dropped > 0)

if size == 2 then
  local function fails(pattern, f, ...)
    local ok, message = pcall(f, ...)
    assert(not ok and message:find(pattern), message)
  end
  fails('moe.FFN: hidden 1 does not spread over etp = 2 ranks', moe.Layer, { dim = 4, mesh = dist.mesh { etp = 2 },
    experts = moe.FFN { experts = 2, hidden = 1 }, router = moe.routers.top_k { dim = 4, top_k = 1 } })
  -- A mistake that only one rank of a tensor group makes.
  local layer = moe.Layer { dim = 4, mesh = dist.mesh { tp = 2 }, experts = moe.FFN { experts = 2, hidden = 4 },
    router = moe.Router { route = function(_, x)
      local ids = lumoe.full({ x:size(0), 1 }, dist.rank() == 1 and 5 or 0, { dtype = 'i32' })
      return { scores = lumoe.ones(x:size(0), 2), expert_ids = ids }
    end } }
  fails("router 'Router': expert id 5, for token %d in slot 0", layer, lumoe.ones(5, 4))
end
dist.barrier()
if dist.rank() == 0 then print 'all well' end
