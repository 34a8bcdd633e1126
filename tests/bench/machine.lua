--- What a figure was measured on: the machine, the programs and their versions, and what the machine can do at most.
local json = require 'cjson'
local path = require 'pl.path'
local turns = require 'tests.bench.turns'

local machine = {}

local quote = turns.quote

--- Where benchmarks keep what they set up.
function machine.cache()
  return path.join(os.getenv 'XDG_CACHE_HOME' or path.join(os.getenv 'HOME' or '/tmp', '.cache'), 'lumoe')
end

local function first_of(command)
  local pipe = io.popen(command .. ' 2>/dev/null')
  local line = pipe:read '*l'
  pipe:close()
  return line
end

local function cpu()
  for line in io.lines '/proc/cpuinfo' do
    local name = line:match '^model name%s*:%s*(.*)'
    if name then return name end
  end
  return 'unknown CPU'
end

local VERSIONS = [[
import importlib.metadata as m, platform
print(', '.join(['Python ' + platform.python_version()] + [n + ' ' + m.version(n) for n in ('torch', 'transformers', 'deepspeed')]))]]

--- Lines that say what was used. venv: the peers' place, or nil.
function machine.describe(opts)
  local lines = {
    ('CPU: %s, %s cores; %d threads'):format(cpu(), first_of 'nproc' or '?', opts.threads),
    ('Date: %s'):format(os.date '!%Y-%m-%d %H:%M UTC'),
    ('Lumoe: %s; %s'):format(first_of('git -C ' .. quote(opts.root) .. ' describe --always --dirty') or 'no version', jit.version),
  }
  if opts.venv then
    lines[#lines + 1] = 'Peers: ' .. (first_of(('%s/bin/python3 -c %s'):format(quote(opts.venv), quote(VERSIONS))) or '?')
  end
  return lines
end

--- The limits, measured now (peak.c): { f32, bf16 } in GFLOP/s, bf16 being f32's where the CPU does not multiply it;
-- { read, copy, update } in GB/s.
function machine.peak(here, threads)
  local folder = path.join(machine.cache(), 'bench')
  local program, source = path.join(folder, 'peak'), path.join(here, 'peak.c')
  local built = path.exists(program) and path.getmtime(program) >= path.getmtime(source)
  if not built then
    local command = ('mkdir -p %s && ${CC:-cc} -O3 -march=native -fopenmp -o %s %s'):format(quote(folder), quote(program), quote(source))
    assert(os.execute(command) == 0, 'tests/bench/peak.c could not be compiled')
  end
  local pipe = io.popen(('%s %d'):format(quote(program), threads))
  local limits = json.decode(pipe:read '*a')
  pipe:close()
  if limits.bf16 == 0 then limits.bf16 = limits.f32 end
  return limits
end

return machine
