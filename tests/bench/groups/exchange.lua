--- Collectives over the ranks of one host: ours, a bare Open MPI program's, and PyTorch's over gloo.
--
-- The programs run one after the other, each through all lines, in rounds: those of a job would get in each other's way,
-- since ranks that wait keep their cores busy.
local json = require 'cjson'
local path = require 'pl.path'
local machine = require 'tests.bench.machine'
local turns = require 'tests.bench.turns'

local quote = turns.quote
local KIB, MIB = 2 ^ 10, 2 ^ 20
local COLLECTIVES = { 'all_to_all', 'all_to_all_zipf', 'all_reduce', 'reduce_scatter', 'all_gather' }
local SIZES = { { 64 * KIB, '64 KiB' }, { MIB, '1 MiB' }, { 8 * MIB, '8 MiB' }, { 64 * MIB, '64 MiB' } }
local LARGE = 64 * MIB -- in no cache: the memory's bandwidth is the limit

-- Those of a quick run: without reduce_scatter and all_gather, of which all_reduce is made.
local function lines(b)
  local list = {}
  for i, name in ipairs(COLLECTIVES) do
    local wanted = name:find(b.opts.name or '', 1, true) and not (b.opts.quick and i > 3)
    for _, size in ipairs(not wanted and {} or b.opts.tiny and { SIZES[1] } or SIZES) do
      list[#list + 1] = { name = name, bytes = size[1], size = size[2], job = ('%s f32 %d'):format(name, size[1]) }
    end
  end
  return list
end

local function compiled(b)
  local folder = path.join(machine.cache(), 'bench')
  local program, source = path.join(folder, 'mpi_bench'), path.join(b.opts.here, 'peers', 'mpi_bench.c')
  if path.exists(program) and path.getmtime(program) >= path.getmtime(source) then return program end
  assert(os.execute(('mkdir -p %s && mpicc -O2 -o %s %s'):format(quote(folder), quote(program), quote(source))) == 0,
    'mpi_bench.c could not be compiled')
  return program
end

-- { name, command }: what prints the medians of the jobs as a list.
local function programs(b, ranks)
  local launch = ('OMP_NUM_THREADS=1 mpirun --allow-run-as-root --oversubscribe --bind-to none -np %d '):format(ranks)
  local list = { { 'lumoe', ('%s%s %s/programs/exchange.lua'):format(launch, quote(b.opts.lumoe), quote(b.opts.here)) } }
  if b.opts.peers then
    list[2] = { 'Open MPI', launch .. quote(compiled(b)) }
    list[3] = { 'gloo', ('%s/bin/python3 %s/peers/gloo.py %d'):format(quote(b.opts.venv), quote(b.opts.here), ranks) }
  end
  return list
end

local function measure(b, program, jobs)
  local command = { program[2], b.opts.seconds / 2 }
  for _, job in ipairs(jobs) do command[#command + 1] = quote(job) end
  local pipe = io.popen(('%s 2>>%s'):format(table.concat(command, ' '), quote(b.opts.log)))
  local answer = pipe:read '*a'
  pipe:close()
  local ok, list = pcall(json.decode, answer)
  if not ok or #list ~= #jobs then error(program[1] .. ' did not end well', 0) end
  return list
end

-- The median over the rounds of each program's ms for each job; a program that fails once is left out.
local function rounds(b, list, jobs)
  local all = {}
  for _ = 1, b.opts.rounds do
    for i, program in ipairs(list) do
      local ok, times = pcall(measure, b, program, jobs)
      if not ok and i == 1 then error(times, 0) end
      if not ok then b:fail('ranks', program[1], times) end
      for k, ms in ipairs(ok and times or {}) do
        all[i] = all[i] or {}
        all[i][k] = all[i][k] or {}
        if ms ~= json.null then table.insert(all[i][k], ms) end
      end
    end
  end
  return all
end

local function add(b, line, ranks, program, own, other)
  local megabytes = line.bytes / 1e6 -- over ms: GB/s
  b:add({ name = ('%s %s, %d ranks'):format(line.name, line.size, ranks), dtype = 'f32', unit = 'GB/s', ours = megabytes / own,
    peer = other and megabytes / other, peer_name = other and program },
    line.bytes >= LARGE and function(limits) return 2 * ranks * megabytes / own / limits.copy end or nil)
end

return {
  title = 'Collectives of ranks on this host: what a rank puts in, a second; share of the memory bandwidth that reading and '
    .. 'writing all of it once would need',
  run = function(b)
    if not b:wanted({ dtype = 'f32' }, true) then return end
    for _, ranks in ipairs(b.opts.tiny and { 2 } or { 2, 4 }) do
      local list, chosen, jobs = programs(b, ranks), lines(b), {}
      for k, line in ipairs(chosen) do jobs[k] = line.job end
      local times = #jobs > 0 and rounds(b, list, jobs)
      for k, line in ipairs(chosen) do
        local own = turns.median(times[1][k])
        if #list == 1 then add(b, line, ranks, nil, own) end
        for i = 2, #list do
          if times[i] and #times[i][k] > 0 then add(b, line, ranks, list[i][1], own, turns.median(times[i][k])) end
        end
      end
    end
  end,
}
