--- How the ranks of a job share the work: the same ranks factored twice.
--
--   world = dp · tp           everything but experts: dp parts of the batch, tp ranks to each of them
--   world = edp · ep · etp    experts: edp copies of the set, each spread over ep places of etp ranks
--
-- The world is all ranks, or those of `ranks`: a rank alone can be a world of its own in any job.
-- Neighbours talk most: tp is innermost (rank = dp's · tp + tp's), and etp, then ep, on the other side.
local C = require 'lumoe.ffi'
local groups = require 'lumoe.dist.group'
local status = require 'lumoe.status'

---@class lumoe.Mesh
---@field tp integer   ranks that share one part of the batch: attention heads, columns, rows, vocabulary
---@field dp integer   parts of the batch
---@field ep integer   places over which one set of experts is spread
---@field etp integer  ranks of a place: each has a slice of the hidden size of every expert there
---@field edp integer  copies of that set
---@field zero { dense: integer, expert: integer }  stages of ZeRO
---@field offload string?  'optimizer' or 'parameters': what lives in the second tier of memory
---@field tier { dir?: string, bucket?: integer, mapped?: boolean }  where, the bytes that pass through memory at once, and how
---@field data lumoe.Group     the ranks with other tokens, at this rank's place in its tensor group: what each counts of
---  its tokens, as a loss, is added up over them
---@field tensor lumoe.Group   the ranks with the same tokens
---@field tokens lumoe.Group   all ranks: each has tokens of its own where a layer has cut them over tp
---@field expert lumoe.Group   the ep · etp ranks of this rank's set of experts, the ranks of a place side by side
---@field replicas lumoe.Group the ranks that hold the very same slices of the same experts
local Mesh = {}
Mesh.__index = Mesh

local OPTIONS = { ep = true, etp = true, offload = true, ranks = true, tp = true, zero = true }
local ZERO = { dense = true, expert = true }
local OFFLOAD = { optimizer = true, parameters = true }
local TIER = { to = true, dir = true, bucket = true, mapped = true }

-- ---- checks --------------------------------------------------------------------------------

local function known(opts, names, what)
  for key in pairs(opts) do
    if not names[key] then
      local list = {}
      for name in pairs(names) do list[#list + 1] = name end
      table.sort(list)
      status.argument("mesh: unknown option '%s%s'; there are %s", what, tostring(key), table.concat(list, ', '))
    end
  end
end

local function whole(name, n, low, high)
  if type(n) ~= 'number' or n < low or n > high or n % 1 ~= 0 then
    status.argument('mesh: %s must be a whole number from %d%s, not %s', name, low,
      high < math.huge and (' to %d'):format(high) or '', type(n) == 'string' and ("'%s'"):format(n) or tostring(n))
  end
  return n
end

local function divides(what, n, size)
  if size % n ~= 0 then
    status.argument('mesh: %s = %d does not divide the %d rank%s of the job', what, n, size, size == 1 and '' or 's')
  end
end

-- offload = 'optimizer' or 'parameters', or { to = that, dir = '/scratch', bucket = bytes, mapped = false }.
local function checked_offload(offload)
  local tier = {}
  if type(offload) == 'table' then
    known(offload, TIER, 'offload.')
    if offload.dir ~= nil and type(offload.dir) ~= 'string' then
      status.argument('mesh: offload.dir must be the path of a directory, not %s', tostring(offload.dir))
    end
    if offload.bucket ~= nil then whole('offload.bucket', offload.bucket, 1, math.huge) end
    if offload.mapped ~= nil and type(offload.mapped) ~= 'boolean' then
      status.argument('mesh: offload.mapped must be true or false, not %s', tostring(offload.mapped))
    end
    tier = { dir = offload.dir, bucket = offload.bucket, mapped = offload.mapped }
    offload = tostring(offload.to)
  end
  if offload ~= nil and not OFFLOAD[offload] then
    status.argument("mesh: offload must be 'optimizer' or 'parameters', not %s", tostring(offload))
  end
  return offload, tier
end

local function checked(opts, size)
  known(opts, OPTIONS, '')
  if opts.zero ~= nil and type(opts.zero) ~= 'table' then
    status.argument('mesh: zero must be a table { dense = stage, expert = stage }, not %s', tostring(opts.zero))
  end
  local zero = opts.zero or {}
  known(zero, ZERO, 'zero.')
  local m = { zero = {} }
  m.offload, m.tier = checked_offload(opts.offload)
  for _, name in ipairs { 'tp', 'ep', 'etp' } do m[name] = whole(name, opts[name] or 1, 1, math.huge) end
  for _, part in ipairs { 'dense', 'expert' } do m.zero[part] = whole('zero.' .. part, zero[part] or 0, 0, 3) end
  divides('tp', m.tp, size)
  if m.etp == 1 then divides('ep', m.ep, size)
  else divides(('ep · etp = %d · %d'):format(m.ep, m.etp), m.ep * m.etp, size) end
  return m
end

-- ---- groups --------------------------------------------------------------------------------

-- world[first], world[first + step], ... (from 0): the ranks of one line through the mesh.
local function line(world, first, count, step)
  local ranks = {}
  for i = 0, count - 1 do ranks[i + 1] = world[first + i * step + 1] end
  return groups.group(ranks)
end

-- The ranks of the mesh's world, as a group.
local function world_of(ranks)
  if ranks == nil then return groups.world() end
  if type(ranks) ~= 'table' or #ranks == 0 then status.argument('mesh: ranks must be a list of ranks, not %s', tostring(ranks)) end
  local here = false
  for _, r in ipairs(ranks) do here = here or r == groups.rank() end
  if not here then status.argument('mesh: rank %d makes a mesh of ranks %s', groups.rank(), table.concat(ranks, ', ')) end
  return groups.group(ranks)
end

local meshes = {}

--- The mesh of these options: the same one each time. All its ranks call it alike.
---@param opts { tp?: integer, ep?: integer, etp?: integer, zero?: { dense?: integer, expert?: integer }, offload?: string|table, ranks?: integer[] }?
---@return lumoe.Mesh
local function mesh(opts)
  opts = opts or {}
  if type(opts) ~= 'table' then status.argument('mesh: wants a table of options, as { ep = 2 }, not %s', tostring(opts)) end
  local world = world_of(opts.ranks)
  local size, rank = world.size, world.rank
  local m = checked(opts, size)
  local key = table.concat({ m.tp, m.ep, m.etp, m.zero.dense, m.zero.expert, m.offload or 'none',
    m.tier.dir or '', m.tier.bucket or '', tostring(m.tier.mapped), unpack(world.ranks) }, ' ')
  if meshes[key] then return meshes[key] end
  local spread = m.ep * m.etp
  m.dp, m.edp = size / m.tp, size / spread
  m.tokens = world
  local function across(...) return line(world.ranks, ...) end
  m.data, m.tensor = across(rank % m.tp, m.dp, m.tp), across(rank - rank % m.tp, m.tp, 1)
  m.expert, m.replicas = across(rank - rank % spread, spread, 1), across(rank % spread, m.edp, spread)
  if m.tp > 1 then C.lm_set_repeatable(1) end -- what a tensor group computes alike, it must have alike
  meshes[key] = setmetatable(m, Mesh)
  return m
end

--- In words: `dp 2 × tp 2, experts edp 1 × ep 2 × etp 2`, and what is not the default besides.
function Mesh:__tostring()
  local words = { ('dp %d × tp %d, experts edp %d × ep %d × etp %d'):format(self.dp, self.tp, self.edp, self.ep, self.etp) }
  if self.zero.dense + self.zero.expert > 0 then
    words[#words + 1] = ('ZeRO dense %d expert %d'):format(self.zero.dense, self.zero.expert)
  end
  if self.offload then words[#words + 1] = ('offload %s'):format(self.offload) end
  return table.concat(words, ', ')
end

return mesh
