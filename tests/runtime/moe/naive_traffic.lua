--- What each rank sends to each, the slow way: by following every kept route of every token.
local naive = {}

local function matrix(n)
  local m = {}
  for i = 1, n do
    m[i] = {}
    for j = 1, n do m[i][j] = 0 end
  end
  return m
end

local function turned(m)
  local t = matrix(#m)
  for i = 1, #m do
    for j = 1, #m do t[i][j] = m[j][i] end
  end
  return t
end

-- Rows from each rank (1..) to each host when a token that goes there goes once.
local function per_host(b, kept, parts, ranks, o)
  local rows = {}
  for s, rank in ipairs(ranks) do
    rows[s] = {}
    for _, t in ipairs(parts[rank]) do
      local been = {}
      for slot = 0, b.top_k - 1 do
        local e = b.ids[t][slot]
        if b.valid[t] and e >= 0 and not kept.dropped[t][slot] and not o.shadow[e] then
          for d = o.place_of(e) * o.etp + 1, (o.place_of(e) + 1) * o.etp do been[o.hosts[d]] = true end
        end
      end
      for host in pairs(been) do rows[s][host] = (rows[s][host] or 0) + 1 end
    end
  end
  return rows
end

--- Parcels and routes from each rank of the expert group (from 1) to each. o: etp, once, place_of(e), shadow[e].
local function demand(b, kept, parts, ranks, o)
  local parcels, routes = matrix(#ranks), matrix(#ranks)
  for s, rank in ipairs(ranks) do
    for _, t in ipairs(parts[rank]) do
      for d = 1, #ranks do
        local n = 0
        for slot = 0, b.top_k - 1 do
          local e = b.ids[t][slot]
          local place = o.shadow[e] and s - 1 or o.place_of(e)
          if b.valid[t] and e >= 0 and not kept.dropped[t][slot] and place == math.floor((d - 1) / o.etp) then
            n = n + 1
          end
        end
        routes[s][d] = routes[s][d] + n
        parcels[s][d] = parcels[s][d] + (o.once and math.min(n, 1) or n)
      end
    end
  end
  return parcels, routes
end

-- One after the other, each message from i to j adds to sent[i][j].
local function direct(m, send)
  for i = 1, #m do
    for j = 1, #m do send(i, j, m[i][j]) end
  end
end

local function padded(m, send)
  local most = 0
  for i = 1, #m do
    for j = 1, #m do most = i ~= j and math.max(most, m[i][j]) or most end
  end
  direct(m, function(i, j) send(i, j, most) end)
end

-- crossing[i][h]: what goes from i to host h, if less than all of m; back: all of it goes the other way, and is sent so.
local function two_level(m, send, host, crossing, back)
  if back then
    m, send = turned(m), function(i, j, n) back(j, i, n) end
  end
  local number, size = {}, {}
  for i = 1, #m do
    size[host[i]] = (size[host[i]] or 0) + 1
    number[i] = size[host[i]] - 1
  end
  local across, inside = matrix(#m), matrix(#m)
  for i = 1, #m do
    for j = 1, #m do
      local bearer = i
      for q = 1, #m do
        if host[i] ~= host[j] and host[q] == host[j] and number[i] % size[host[q]] == number[q] then bearer = q end
      end
      if bearer ~= i then across[i][bearer] = crossing and (crossing[i][host[j]] or 0) or across[i][bearer] + m[i][j] end
      inside[bearer][j] = inside[bearer][j] + m[i][j]
    end
  end
  direct(across, send)
  direct(inside, send)
end

local WAY = { direct = direct, padded = padded, two_level = two_level }

local function overlap(parts, ranks)
  local lines = {}
  for _, rank in ipairs(ranks) do
    if #parts[rank] > 0 then
      local line = { math.huge, -math.huge }
      for _, t in ipairs(parts[rank]) do line = { math.min(line[1], t), math.max(line[2], t) } end
      lines[#lines + 1] = line
    end
  end
  for i = 1, #lines do
    for j = 1, i - 1 do
      if lines[i][1] <= lines[j][2] and lines[j][1] <= lines[i][2] then return true end
    end
  end
  return false
end

--- legs[leg][i][j] = { rows, bytes, messages } from rank i of the group to rank j (from 1), for one forward and
--- backward. ranks: the group's, in the world; o: etp, once, way, hosts, place_of, shadow, weights
--- (numbers in each of an expert's tensors), bytes (of a number); row_bytes: of a row.
function naive.traffic(b, kept, parts, ranks, o, row_bytes)
  local parcels, routes = demand(b, kept, parts, ranks, o)
  local legs = {}
  local crossing = o.once and o.way == 'two_level' and per_host(b, kept, parts, ranks, o) or nil
  local function add(leg, m, bytes, is_rows, way)
    legs[leg] = legs[leg] or matrix(#ranks)
    local function send(i, j, n)
      if legs[leg][i][j] == 0 then legs[leg][i][j] = { 0, 0, 0 } end
      if i == j or n == 0 then return end
      local sent = legs[leg][i][j]
      sent[1], sent[2], sent[3] = sent[1] + (is_rows and n or 0), sent[2] + n * bytes, sent[3] + 1
    end
    local back = is_rows and crossing and (leg == 'combine' or leg == 'dispatch_backward') and send or nil
    WAY[way or o.way](m, send, o.hosts, is_rows and crossing or nil, back)
  end
  local nothing = matrix(#ranks)
  add('plan', o.once and routes or nothing, 4, false, 'direct') -- labels
  add('plan', overlap(parts, ranks) and parcels or nothing, 8, false, 'direct') -- ids of tokens
  add('dispatch', parcels, row_bytes, true)
  add('dispatch_backward', turned(parcels), row_bytes, true)
  add('combine', turned(parcels), row_bytes, true)
  add('combine', o.once and routes or nothing, 4, false) -- weights
  add('combine_backward', parcels, row_bytes, true)
  add('combine_backward', o.once and turned(routes) or nothing, 4, false)
  local shadows = matrix(#ranks) -- each owner's to all others
  for e in pairs(o.shadow) do
    for j = 1, #ranks do shadows[o.place_of(e) + 1][j] = shadows[o.place_of(e) + 1][j] + 1 end
  end
  for _, numbers in ipairs(o.weights) do
    add('shadow', shadows, numbers * o.bytes, false, 'direct')
    add('shadow_backward', turned(shadows), numbers * 4, false, 'direct')
  end
  return legs
end

return naive
