--- How rows travel between ranks: `moe.Layer { exchange = }`, a short name or a table.
--
--     'rows'       a row for every route, straight to its expert's rank
--     'once'       { once = true }: a token goes to each rank once, however many of its experts are there; weights are
--                  applied there, and one partial sum comes back
--     'two_level'  { way = 'two_level' }: what is for another host goes to one rank there, which hands it on
--     'padded'     { way = 'padded' }: as much between any two ranks as between the busiest two, to compare with
--
-- The options of a table combine: { once = true, way = 'two_level', parts = 4, shadow = 2 }.
local C = require 'lumoe.ffi'
local status = require 'lumoe.status'
local tensor = require 'lumoe.tensor'

---@class lumoe.Exchange
---@field once boolean
---@field way string       'direct', 'padded' or 'two_level'; two levels and `once`: a token's row to each host once
---@field code integer     the way, for C
---@field hosts integer[]? two levels: the host of each rank of the expert group; by default as they are
---@field parts integer    so many parts of the tokens, of which one travels while another is with the experts
---@field shadow number?   experts with more than so many times the mean load come to all ranks, as copies for one
---                        plan (with parts, for each part), and their tokens stay where they are (He et al. 2022);
---                        not with etp

local WAY = { direct = C.LM_WAY_DIRECT, padded = C.LM_WAY_PADDED, two_level = C.LM_WAY_TWO_LEVEL }
local SHORT = { rows = {}, once = { once = true }, padded = { way = 'padded' }, two_level = { way = 'two_level' } }
local OPTIONS = { once = true, way = true, hosts = true, parts = true, shadow = true }

--- An exchange from its short name ('rows', 'once', 'padded', 'two_level'), a table or nil.
---@param given string|table|nil
---@param who string  for errors
---@return lumoe.Exchange
local function exchange(given, who)
  if type(given) == 'table' and given.code then return given end -- it has been here before
  if given == nil then given = 'rows' end
  if type(given) == 'string' then
    if not SHORT[given] then
      status.argument("%s: no exchange '%s'; there are once, padded, rows, two_level", who, given)
    end
    given = SHORT[given]
  end
  tensor.options(given, OPTIONS, who .. ': exchange')
  local way = given.way or 'direct'
  if not WAY[way] then
    status.argument("%s: exchange.way must be 'direct', 'padded' or 'two_level', not %s", who, tostring(way))
  end
  local parts = given.parts or 1
  if type(parts) ~= 'number' or parts < 1 or parts % 1 ~= 0 then
    status.argument('%s: exchange.parts must be a whole number from 1, not %s', who, tostring(parts))
  end
  local shadow = given.shadow
  if shadow ~= nil and (type(shadow) ~= 'number' or shadow <= 0 or shadow ~= shadow) then
    status.argument('%s: exchange.shadow must be a number above 0, not %s', who, tostring(shadow))
  end
  return { once = given.once == true, way = way, code = WAY[way], hosts = given.hosts, parts = parts, shadow = shadow }
end

return exchange
