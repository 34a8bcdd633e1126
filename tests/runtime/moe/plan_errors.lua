-- Run by plan_spec.lua under mpirun: a mistake on the last rank is an error on every rank.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'

local rank, size = C.lm_dist_rank(), C.lm_dist_world_size()
local everyone = ffi.new('int32_t[?]', size)
for r = 0, size - 1 do everyone[r] = r end
local world = ffi.new 'lm_group *[1]'
assert(C.lm_group_new(everyone, size, world) == 0)

local function plan(change)
  local spec = ffi.new 'lm_plan_spec'
  local ids, tokens = ffi.new('int32_t[4]', 0, 1, 2, 0), ffi.new('int64_t[2]', 10 * rank, 10 * rank + 1)
  local scores, priorities = ffi.new('float[6]', 0.5), ffi.new('double[4]', 1)
  local valid = ffi.new('uint8_t[2]', 1, 1)
  spec.router, spec.tokens, spec.top_k, spec.experts = 'enc.0', 2, 2, 3
  spec.expert_ids, spec.expert_ids_dtype, spec.token_ids = ids, C.LM_I32, tokens
  spec.scores, spec.priorities, spec.valid, spec.capacity_factor = scores, priorities, valid, -1
  if rank == size - 1 then change(spec, ids, tokens, scores, priorities, valid) end
  local out = ffi.new 'lm_plan *[1]'
  local st = C.lm_plan_new(spec, world[0], world[0], out)
  C.lm_plan_release(out[0])
  return st, ffi.string(C.lm_last_error())
end

local last = size - 1
local function expect(message, change)
  local st, got = plan(change)
  assert(st < 0, 'no error: ' .. message)
  if rank ~= last then message = message .. ' [on rank ' .. last .. ']' end
  assert(got == message, got .. '\nwanted: ' .. message)
end

local id = 10 * last + 1
expect(("router 'enc.0': expert id 3, for token %d in slot 1, is not one of 0 to 2 (nor -1, for none)"):format(id),
  function(_, ids) ids[3] = 3 end)
expect(("router 'enc.0': expert id -2, for token %d in slot 0, is not one of 0 to 2 (nor -1, for none)"):format(id),
  function(_, ids) ids[2] = -2 end)
expect(("router 'enc.0': the score of token %d for expert 2 is NaN"):format(id),
  function(_, _, _, scores) scores[5] = 0 / 0 end)
expect(("router 'enc.0': the priority of token %d in slot 0 is NaN"):format(id),
  function(spec, _, _, _, priorities) priorities[2], spec.select = 0 / 0, C.LM_SELECT_PRIORITY end)
expect(('plan: two tokens have the id %d'):format(id), function(_, _, tokens) tokens[0] = tokens[1] end)
expect('plan: expert 1 belongs to place 77 of ' .. size, function(spec)
  spec.owner = ffi.new('int32_t[3]', 0, 77, 0)
end)
expect(('plan: etp = %d does not divide the %d ranks of the experts'):format(size + 1, size), function(spec)
  spec.etp = size + 1
end)
expect('plan: no way has number 9', function(spec) spec.way = 9 end)
expect('plan: -1 parts', function(spec) spec.parts = -1 end)
if size > 1 then
  expect(('plan: experts over 2 times the mean load cannot be shadowed with etp = %d'):format(size), function(spec)
    spec.shadow, spec.etp = 2, size
  end)
end
expect('recipe.lua:3: route: attempt to index a nil value', function(spec)
  spec.status, spec.error = C.LM_EARG, 'recipe.lua:3: route: attempt to index a nil value'
end)

-- None of that was a mistake of padding's.
local st = plan(function(_, ids, _, scores, _, valid)
  valid[1], ids[2], ids[3], scores[5] = 0, 99, -7, 0 / 0
end)
assert(st == 0, ffi.string(C.lm_last_error()))
if rank == 0 then print 'all told' end
