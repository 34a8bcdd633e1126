--- A mesh as numbers alone: the layout of a job that need not run, of any number of ranks.
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

local layout = {}

local OPTIONS = { ranks = true, tp = true, ep = true, etp = true, zero = true, offload = true, on_host = true }
local ZERO = { dense = true, expert = true }
local OFFLOAD = { optimizer = true, parameters = true }

local function whole(value, name, low)
  if type(value) ~= 'number' or value % 1 ~= 0 or value < low then
    status.argument('estimate: mesh.%s must be a whole number from %d, not %s', name, low, tostring(value))
  end
  return value
end

local function divides(part, name, all)
  if all % part ~= 0 then status.argument('estimate: %s = %d does not divide %d ranks', name, part, all) end
  return all / part
end

-- What goes to the second tier: gradients, optimizer state and masters ('optimizer'), or parameters too; and the
-- bytes of a bucket on its way, where they are not the default.
local function offload_of(value)
  local bucket
  if type(value) == 'table' then value, bucket = value.to, value.bucket end
  if value and not OFFLOAD[value] then
    status.argument("estimate: mesh.offload must be 'optimizer' or 'parameters', not %s", tostring(value))
  end
  return value or nil, bucket
end

--- `{ ranks = 1, tp = 1, ep = 1, etp = 1, zero = { dense = 0, expert = 0 }, offload = nil }`, as dist.mesh
-- takes it, or a mesh that dist.mesh made. The ranks are factored twice: dp · tp and edp · ep · etp. on_host: so many
-- ranks in a row share a host (by default the devices of the hardware, or all).
function layout.new(opts)
  opts = opts or {}
  if opts.dp then
    opts = { ranks = opts.dp * (opts.tp or 1), tp = opts.tp, ep = opts.ep, etp = opts.etp, zero = opts.zero,
      offload = opts.offload and { to = opts.offload, bucket = opts.tier.bucket } }
  end
  tensor.options(opts, OPTIONS, 'estimate: mesh')
  local self = { ranks = whole(opts.ranks or 1, 'ranks', 1), zero = {} }
  self.offload, self.bucket = offload_of(opts.offload)
  self.on_host = opts.on_host and whole(opts.on_host, 'on_host', 1)
  for _, name in ipairs { 'tp', 'ep', 'etp' } do self[name] = whole(opts[name] or 1, name, 1) end
  local zero = tensor.options(opts.zero, ZERO, 'estimate: mesh.zero')
  for name in pairs(ZERO) do
    self.zero[name] = whole(zero[name] or 0, 'zero.' .. name, 0)
    if self.zero[name] > 3 then status.argument('estimate: mesh.zero.%s is %d; there are 0 to 3', name, self.zero[name]) end
  end
  self.dp = divides(self.tp, 'tp', self.ranks)
  self.edp = divides(self.ep * self.etp, 'ep · etp', self.ranks)
  -- A lone replica has nobody to divide with; what leaves memory leaves by the way of ZeRO (dist/offload.lua).
  local least = self.offload == 'parameters' and 3 or self.offload and 2 or 0
  local function stage(asked, replicas) return math.max(replicas > 1 and asked or 0, least) end
  self.stage = { dense = stage(self.zero.dense, self.dp), expert = stage(self.zero.expert, self.edp) }
  -- Each group: its size, and the distance in ranks between one member and the next.
  self.groups = {
    data = { size = self.dp, stride = self.tp }, tensor = { size = self.tp, stride = 1 },
    tokens = { size = self.ranks, stride = 1 }, expert = { size = self.ep * self.etp, stride = 1 },
    replicas = { size = self.edp, stride = self.ep * self.etp },
  }
  return self
end

--- In one line: only what is not 1 or 0.
function layout.describe(self)
  local words = { ('%d rank%s'):format(self.ranks, self.ranks == 1 and '' or 's') }
  for _, name in ipairs { 'dp', 'tp', 'edp', 'ep', 'etp' } do
    if self[name] > 1 then words[#words + 1] = ('%s %d'):format(name, self[name]) end
  end
  for _, name in ipairs { 'dense', 'expert' } do
    if self.zero[name] > 0 then words[#words + 1] = ('ZeRO-%d %s'):format(self.zero[name], name) end
  end
  if self.offload then
    words[#words + 1] = self.offload == 'parameters' and 'optimizer and parameters offloaded' or 'optimizer offloaded'
  end
  return table.concat(words, ' · ')
end

return layout
