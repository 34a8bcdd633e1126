--- This machine as estimate/hardware.lua describes others, measured in a few seconds: products and copies through our own
-- kernels, messages between the ranks there are, the tier's file, and what our layers reach of all that
-- (estimate/reach.lua). All ranks call it together; a busy machine gives small numbers.
local dist = require 'lumoe.dist'
local fastest = require 'lumoe.estimate.fastest'
local reach = require 'lumoe.estimate.reach'
local scope = require('lumoe.autograd').scope
local random = require 'lumoe.random'
local tensor = require 'lumoe.tensor'
local Tier = require 'lumoe.dist.tier'

local function products(dtype)
  local n = 768
  local a, b = random.randn(n, n):to(dtype), random.randn(n, n):to(dtype)
  return 2 * n ^ 3 / fastest(function() scope(function() a:matmul(b) end) end)
end

local function copies()
  local n = 8 * 2 ^ 20
  local a, b = tensor.zeros(n), tensor.zeros(n)
  return 2 * 4 * n / fastest(function() a:copy_(b) end)
end

local function messages()
  if dist.world_size() == 1 then return { latency = 0, bandwidth = math.huge } end
  local ranks = dist.world_size()
  local large = tensor.zeros(2 ^ 20)
  local latency = fastest(function() dist.reduce_number(1) end)
  local whole = fastest(function() dist.all_reduce(large) end)
  return { latency = latency / (ranks - 1), bandwidth = 2 * 4 * 2 ^ 20 * (ranks - 1) / ranks / whole }
end

local function file(dir)
  local tier, t = Tier.open(dir), tensor.zeros(4 * 2 ^ 20)
  local bytes = 4 * t:numel()
  local at = tier:reserve(bytes)
  local took = fastest(function()
    tier:write(at, t)
    tier:wait()
  end)
  tier:close()
  return bytes / took
end

local function memory_of_host()
  for line in io.lines '/proc/meminfo' do
    local kib = line:match '^MemTotal:%s+(%d+)'
    if kib then return tonumber(kib) * 1024 end
  end
end

---@param opts { dir?: string }?  of the tier
return function(opts)
  local devices = dist.local_size()
  local host = memory_of_host()
  local link, bandwidth = messages(), copies()
  local self = { title = ('here, %d rank%s'):format(devices, devices == 1 and '' or 's'), devices = devices,
    memory = host / devices, flops = { f32 = products 'f32', bf16 = products 'bf16' }, efficiency = 1,
    bandwidth = bandwidth, link = link, network = link,
    host = { memory = host, bandwidth = bandwidth * devices },
    tier = { bandwidth = file(opts and opts.dir), memory = math.huge } }
  self.reach = reach(self)
  return self
end
