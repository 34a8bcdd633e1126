--- What an optimizer's step costs: `lumoe tests/bench/optim.lua [MILLIONS]` prints, for one parameter of so many
-- million elements (32), the time and the bytes a second that it reads and writes once each, beside those of
-- memory itself: the triad a = b + c, whose third stream the CPU reads before it writes.
local C = require 'lumoe.ffi'
local lumoe = require 'lumoe'
local handle = require 'lumoe.handle'
local clock = require('lumoe.log.terminal').clock
local nn, optim = lumoe.nn, lumoe.optim

local COLS = 1024
local rows = math.floor((tonumber(arg[1]) or 32) * 1e6 / COLS)
local n = rows * COLS

local function best(f)
  local least = math.huge
  for _ = 1, 6 do
    local begun = clock()
    f()
    least = math.min(least, clock() - begun)
  end
  return least
end

local limit
local function line(name, bytes, f)
  local seconds = best(f)
  local rate = bytes * n / seconds
  limit = limit or rate
  print(('%-38s %8.1f ms %8.1f GB/s %6.0f%%'):format(name, seconds * 1e3, rate / 1e9, 100 * rate / limit))
end

print(('%.0f M elements, %d threads'):format(n / 1e6, C.lm_threads()))
local a, b = lumoe.ones(rows, COLS), lumoe.ones(rows, COLS)
line('a = b + c', 16, function() lumoe.scope(function() local _ = a + b end) end)

local One = nn.class 'One'
function One:init() nn.parameter(self, 'weight', { rows, COLS }, { init = 'normal', std = 1 }) end

local gradient = lumoe.full({ rows, COLS }, 0.01)
local out = require('ffi').new 'double[1]'
for _, case in ipairs {
  { 'AdamW', 'f32', {}, 28 }, { 'AdamW', 'bf16', {}, 30 }, { 'AdamW', 'bf16', { masters = false }, 24 },
  { 'AdamW', 'bf16', { moments = 'bf16' }, 22 }, { 'AdamW', 'bf16', { masters = false, moments = 'bf16' }, 16 },
  { 'SGD', 'f32', { momentum = 0.9 }, 20 }, { 'Adafactor', 'f32', {}, 20 },
} do
  local model = One():to(case[2])
  model.weight.grad = gradient
  local opt = optim[case[1]](model:named_parameters(), case[3])
  line(('%s %s%s%s'):format(case[1], case[2], case[3].masters == false and ', no masters' or '',
    case[3].moments and ', bf16 moments' or ''), case[4], function() opt:step() end)
  if case[1] == 'AdamW' and case[2] == 'f32' then
    line('norm of the gradient', 4, function() C.lm_optim_grad_sqsum(handle.pointer(model.weight), out) end)
  end
  model, opt = nil, nil
  collectgarbage()
  collectgarbage()
end
