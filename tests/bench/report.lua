--- The benchmark's results: lines as they come, a table in Markdown, a list in JSON, pictures.
local file = require 'pl.file'
local json = require 'cjson'
local path = require 'pl.path'
local viz = require 'lumoe.viz'

local report = {}

local function number(x)
  if x == nil then return '' end
  local digits = x >= 100 and 0 or x >= 10 and 1 or 2
  local text = ('%.' .. digits .. 'f'):format(x)
  local grouped = text:match '^%d+'
  while true do
    local more, n = grouped:gsub('^(%d+)(%d%d%d)', '%1,%2')
    if n == 0 then break end
    grouped = more
  end
  return grouped .. text:match '^%d+(.*)$'
end

local function percent(x) return x and ('%.0f%%'):format(100 * x) or '' end
local function ratio(x) return x and ('%.2f'):format(x) or '' end

--- A line for the terminal.
function report.line(r)
  if r.failed then return ('%-9s %-40s %-5s %s: %s'):format(r.group, r.name, r.dtype, r.peer_name, r.failed) end
  local waited = r.ours_parts and r.ours_parts.waited or 0 -- of the time, for messages
  return ('%-9s %-40s %-5s %10s %-9s %5s  %10s %6s  %s%s%s'):format(r.group, r.name, r.dtype, number(r.ours), r.unit,
    percent(r.limit_share), number(r.peer), r.ratio and ratio(r.ratio) .. 'x' or '', r.peer_name or '',
    r.memory_share and (', our memory %s of its'):format(percent(r.memory_share)) or '',
    waited > 0 and (', ours waits %s of its time'):format(percent(waited)) or '')
end

local function is_ours(r) return r.peer_name:find('^lumoe') ~= nil end -- another program of ours, to compare with

-- Records of the same line in a list each, in order; the fastest peer's marked, which is another of ours only where there is none.
local function lines_of(records)
  local lines, by = {}, {}
  for _, r in ipairs(records) do
    local key = r.group .. '\0' .. r.name .. '\0' .. r.dtype
    if not by[key] then
      by[key] = {}
      lines[#lines + 1] = by[key]
    end
    table.insert(by[key], r)
  end
  for _, line in ipairs(lines) do
    local best
    for _, r in ipairs(line) do
      r.best = nil
      if r.ratio and (not best or is_ours(best) and not is_ours(r) or is_ours(best) == is_ours(r) and r.ratio < best.ratio) then
        best = r
      end
    end
    if best then best.best = true end
    best = best or line[1]
    line.best = best
  end
  return lines
end

-- Of each group, type and peer, the ratios of all lines together, and those to the fastest peer of each line.
local function sums_of(records)
  local sums, by = {}, {}
  local function add(r, peer)
    local key = table.concat({ r.group, r.dtype, peer }, '\0')
    if not by[key] then
      by[key] = { group = r.group, dtype = r.dtype, peer = peer, lines = 0, logs = 0, least = math.huge }
      sums[#sums + 1] = by[key]
    end
    local sum = by[key]
    sum.lines, sum.logs = sum.lines + 1, sum.logs + math.log(r.ratio)
    if r.ratio < sum.least then sum.least, sum.at = r.ratio, r.name end
  end
  for _, line in ipairs(lines_of(records)) do
    for _, r in ipairs(line) do
      if r.best and not is_ours(r) then add(r, 'the fastest of each line') end
      if r.ratio then add(r, r.peer_name) end
    end
  end
  for _, sum in ipairs(sums) do sum.mean = math.exp(sum.logs / sum.lines) end
  return sums
end

local function sums_in_markdown(records)
  local out = { '\n## Beside each peer\n', '| group | type | peer | lines | ours ×, geometric mean | least | where |',
    '|---|---|---|---|---|---|---|' }
  for _, s in ipairs(sums_of(records)) do
    local fields = { s.group, s.dtype, s.peer, s.lines, ratio(s.mean), ratio(s.least), s.at }
    out[#out + 1] = ('| %s |'):format(table.concat(fields, ' | '))
  end
  return out[4] and table.concat(out, '\n')
end

--- The whole as Markdown. head: lines about the machine.
function report.markdown(head, records, failures)
  local out = { '# Benchmark', '' }
  for _, line in ipairs(head) do out[#out + 1] = '- ' .. line end
  out[#out + 1] = sums_in_markdown(records)
  local group
  for _, line in ipairs(lines_of(records)) do
    if line[1].group ~= group then
      group = line[1].group
      out[#out + 1] = ('\n## %s\n\n| line | type | ours | unit | share of the limit | peer | its figure | ours × | memory |'):format(group)
      out[#out + 1] = '|---|---|---|---|---|---|---|---|---|'
    end
    for _, r in ipairs(line) do
      local bold = r.best and '**' or ''
      out[#out + 1] = ('| %s | %s | %s | %s | %s | %s%s%s | %s | %s%s%s | %s |'):format(r.name, r.dtype, number(r.ours), r.unit,
        percent(r.limit_share), bold, r.peer_name or '', bold, number(r.peer), bold, ratio(r.ratio), bold,
        percent(r.memory_share))
    end
  end
  if #failures > 0 then
    out[#out + 1] = '\n## Not measured\n'
    for _, failure in ipairs(failures) do out[#out + 1] = '- ' .. failure end
  end
  return table.concat(out, '\n') .. '\n'
end

--- The records as JSON, one on a line.
function report.json(records)
  lines_of(records) -- marks the best
  local out = {}
  for i, r in ipairs(records) do out[i] = json.encode(r) end
  return '[\n' .. table.concat(out, ',\n') .. '\n]\n'
end

--- A picture for each group, FOLDER/GROUP.svg: for each line the ratio to its fastest peer; where there are no peers, the
-- share of the limit; where there is neither, the figure.
function report.pictures(folder, head, records)
  local groups, order = {}, {}
  for _, line in ipairs(lines_of(records)) do
    local name = line[1].group
    if not groups[name] then
      groups[name] = {}
      order[#order + 1] = name
    end
    table.insert(groups[name], line)
  end
  for _, name in ipairs(order) do
    local function bars(what, label)
      local list = {}
      for _, line in ipairs(groups[name]) do
        local value = what(line.best)
        if value then
          list[#list + 1] = { label = ('%s %s%s'):format(line[1].name, line[1].dtype, label and label(line.best) or ''), value = value }
        end
      end
      return list
    end
    local list, xlabel, mark = bars(function(r) return r.ratio end, function(r) return ' / ' .. r.peer_name end),
      'ours over the fastest peer', 1
    if #list == 0 then list, xlabel, mark = bars(function(r) return r.limit_share and 100 * r.limit_share end),
      '% of the limit', 100 end
    if #list == 0 then list, xlabel, mark = bars(function(r) return r.ours end), groups[name][1][1].unit, nil end
    viz.bars { title = name, xlabel = xlabel, notes = head, mark = mark, bars = list,
      out = path.join(folder, name .. '.svg') }
  end
end

--- Writes results.md and the pictures into a folder that is there, and the JSON where it is wanted.
function report.write(folder, json_file, head, records, failures)
  assert(file.write(path.join(folder, 'results.md'), report.markdown(head, records, failures)))
  if #records > 0 then report.pictures(folder, head, records) end
  if json_file then assert(file.write(json_file, report.json(records))) end
end

return report
