--- What ranks cost: the recipe's training step on two ranks of one thread each, beside one process of two threads
-- on the same batches.
--
--   ./lumoe tests/bench/ranks.lua [--help]
--
-- The programs take turns (turns.lua). `waiting` is the share of its time that rank 0 was in collectives that were not
-- done yet: for rows, for gradients, for the other rank to arrive.
local argparse = require 'argparse'
local path = require 'pl.path'
local jobs = require 'tests.bench.job'
local turns = require 'tests.bench.turns'

local here = path.abspath(path.dirname(arg[0]))
local lumoe = turns.quote(arg[-1])

local p = argparse('lumoe tests/bench/ranks.lua', 'Ranks beside threads, on the same work.')
p:option('--precision', 'f32 or bf16'):choices { 'f32', 'bf16' }:default 'f32'
p:option('--batches', 'fixed (40 x 48) or varying (as the recipe has)'):choices { 'fixed', 'varying' }:default 'fixed'
p:option('--ranks', 'Ranks; as many threads in the one process'):convert(tonumber):default '2'
p:option('--rounds', 'Turns of each program'):convert(tonumber):default '5'
p:option('--steps', 'Counted steps of a turn'):convert(tonumber):default '6'
local opts = p:parse(arg)

local function start(name, ranks, ep)
  local threads = opts.ranks / ranks
  local file = turns.write(jobs.new('moe', opts.batches, { threads = threads, precision = opts.precision, ep = ep }))
  local launch = ranks > 1 and ('mpirun --allow-run-as-root --oversubscribe --bind-to none -np %d '):format(ranks) or ''
  local program = turns.start(name, ('env OMP_NUM_THREADS=%d %s%s %s/step.lua %s'):format(threads, launch, lumoe,
    turns.quote(here), turns.quote(file)))
  program.file = file
  return program
end

local programs = {
  start(('1 rank, %d threads'):format(opts.ranks), 1, 1),
  start(('%d ranks, every expert on each'):format(opts.ranks), opts.ranks, 1),
  start(('%d ranks, experts spread (ep)'):format(opts.ranks), opts.ranks, opts.ranks),
}
local batches = jobs.new('moe', opts.batches, {}).batches
local tokens = 0
for _, b in ipairs(batches) do tokens = tokens + b.tokens / #batches end

local steps = math.ceil(opts.steps / #batches) * #batches -- whole rounds through the batches
for _, program in ipairs(programs) do
  program:turn(#batches + 2) -- every shape once: kernels are made, pools filled
  program.speeds, program.waits = {}, {}
end
for _ = 1, opts.rounds do
  for _, program in ipairs(programs) do
    local total = 0
    for _, ms in ipairs(program:turn(steps)) do total = total + ms end
    table.insert(program.speeds, tokens * steps / total * 1e3)
    table.insert(program.waits, program.last.waited)
  end
end

local base = turns.median(programs[1].speeds)
io.write(('%-32s %9s %8s %9s %10s\n'):format('', 'tokens/s', 'share', 'waiting', 'loss'))
for _, program in ipairs(programs) do
  local speed = turns.median(program.speeds)
  io.write(('%-32s %9.0f %7.0f%% %8.0f%% %10.6f\n'):format(program.name, speed, 100 * speed / base,
    100 * turns.median(program.waits), program.last.loss))
  program:close()
  os.remove(program.file)
end
