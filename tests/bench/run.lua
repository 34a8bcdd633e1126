--- The benchmark: Lumoe beside every peer, in one run.
--
--   ./lumoe tests/bench/run.lua                         all of it, under an hour; sets up the peers first
--   ./lumoe tests/bench/run.lua --quick                 under 8 minutes
--   ./lumoe tests/bench/run.lua --group layer --experts 8 --top-k 2 --dtype bf16 --no-peers     ours alone, seconds
--   ./lumoe tests/bench/run.lua --help
--
-- Programs that are compared take turns (turns.lua); figures are medians; a ratio is our speed over the peer's, in a
-- pair measured together. Groups are files of groups/, our sides are in programs/, the others in peers/.
local argparse = require 'argparse'
local path = require 'pl.path'
local tablex = require 'pl.tablex'
local clock = require('lumoe.log.terminal').clock
local lumoe = require 'lumoe'
local machine = require 'tests.bench.machine'
local new_bench = require 'tests.bench.bench'
local report = require 'tests.bench.report'
local turns = require 'tests.bench.turns'

local here = path.abspath(path.dirname(arg[0]))
local GROUPS = tablex.filter({ 'products', 'layer', 'models', 'ops', 'exchange', 'growth', 'decoding' },
  function(name) return path.exists(path.join(here, 'groups', name .. '.lua')) end)

local p = argparse('lumoe tests/bench/run.lua', 'Lumoe beside every peer, in one run.')
p:option('--group', 'One of ' .. table.concat(GROUPS, ', ') .. '; may be given several times; default: all'):count '*':choices(GROUPS)
p:flag('--quick', 'Fewer lines, fewer turns: under 8 minutes')
p:flag('--no-peers', 'Lumoe alone')
p:flag('--tiny', 'Sizes of a test: its figures say nothing')
p:option('--json', 'Write the list of results here')
p:option('--out', 'Folder for the table and the pictures'):default(path.join('runs', 'bench'))
p:option('--rounds', 'Turns of each program of a pair'):convert(tonumber)
p:option('--seconds', 'What a turn takes, about'):convert(tonumber)
p:option('--threads', 'Threads of each program'):convert(tonumber):default(tostring(lumoe.threads()))
p:option('--venv', 'Where the peers are installed'):default(path.join(machine.cache(), 'peers'))
-- Which lines: those that have the value, where they have the field.
local FIELDS = { 'experts', 'top_k', 'dtype', 'routing', 'activation', 'model', 'batches' }
p:option('--name', 'Only lines whose name has this')
p:option('--experts', 'Only lines with so many'):convert(tonumber)
p:option('--top-k', 'Only lines with this'):convert(tonumber)
p:option('--dtype', 'Only lines of this'):choices { 'f32', 'bf16' }
p:option('--routing', 'Only lines with this'):choices { 'balanced', 'zipf' }
p:option('--activation', 'Only lines with this'):choices { 'swiglu', 'relu' }
p:option('--model', 'Only lines with this')
p:option('--batches', 'Only lines with these'):choices { 'long', 'fixed', 'varying' }
local opts = p:parse(arg)

if not opts.no_peers then
  local command = ('sh %s/peers/setup.sh %s'):format(turns.quote(here), turns.quote(opts.venv))
  if os.execute(command) ~= 0 then
    lumoe.refuse('the peers could not be set up in %s; why is above. --no-peers measures Lumoe alone', opts.venv)
  end
end

assert(os.execute('mkdir -p ' .. turns.quote(opts.out)) == 0)
local only = {}
for _, name in ipairs(FIELDS) do only[name] = opts[name] end
local bench = new_bench {
  lumoe = arg[-1], here = here, venv = opts.venv, peers = not opts.no_peers,
  threads = opts.threads, quick = opts.quick or opts.tiny or false,
  tiny = opts.tiny, name = opts.name, only = only,
  rounds = opts.rounds or opts.tiny and 1 or opts.quick and 2 or 3,
  seconds = opts.seconds or opts.tiny and 0 or opts.quick and 0.15 or 0.4,
  log = path.join(opts.out, 'peers.log'),
  tell = function(record)
    io.write(report.line(record), '\n')
    io.flush()
  end,
}

local head = machine.describe { threads = opts.threads, root = path.dirname(path.dirname(here)), venv = not opts.no_peers and opts.venv }
io.write(table.concat(head, '\n'), '\n')

local begun = clock()
for _, name in ipairs(#opts.group > 0 and opts.group or GROUPS) do
  local group, started = require('tests.bench.groups.' .. name), clock()
  io.write(('\n%s: %s\n'):format(name, group.title))
  local minutes = #opts.group == 0 and group.minutes
  bench:begin(name, minutes and minutes[opts.quick and 'quick' or 'full'])
  group.run(bench)
  bench:finish()
  io.write(('%s took %.0f s\n'):format(name, clock() - started))
  report.write(opts.out, opts.json, head, bench.records, bench.failures)
end
if #bench.records == 0 then lumoe.refuse 'no line has all that was asked for' end
io.write(('\nThe whole took %.1f minutes. %s has the table and a picture of each group.\n'):format((clock() - begun) / 60, opts.out))
for _, failure in ipairs(bench.failures) do io.write('Not measured: ', failure, '\n') end
if #bench.failures > 0 then io.write(('%s has what the peers printed.\n'):format(path.join(opts.out, 'peers.log'))) end
