--- The recipe's training step beside PyTorch's, paired in one run:
--
--   ./lumoe tests/bench/spine.lua                 all of it
--   ./lumoe tests/bench/spine.lua --help
--
-- Every program that is compared is a process of its own, and they take turns (turns.lua); each turn's first
-- step is not counted. Tokens are those of the source and of the target without padding.
--
--   lumoe       recipes/translate/model.lua (step.lua)
--   nllb        Hugging Face's NLLB-MoE, the same sizes, top-2 as it always is (peers/step.py), as shipped
--   mended      the same without a mistake of Transformers 5.23, by which its experts do four times the work
--   dense       nn.Transformer, against ours with one expert
--   .. intel    the same with PyTorch's MKL told that the CPU is Intel's (peers/mkl_as_intel.c)
local argparse = require 'argparse'
local path = require 'pl.path'
local clock = require('lumoe.log.terminal').clock
local jobs = require 'tests.bench.job'
local turns = require 'tests.bench.turns'

local here = path.abspath(path.dirname(arg[0]))
local quote, median = turns.quote, turns.median

local p = argparse('lumoe tests/bench/spine.lua', 'The recipe\'s training step beside PyTorch\'s.')
p:option('--precision', 'f32 or bf16; both by default'):choices { 'f32', 'bf16' }
p:option('--batches', 'fixed (40 x 48) or varying (as the recipe has); both by default'):choices { 'fixed', 'varying' }
p:option('--model', 'moe or dense; both by default'):choices { 'moe', 'dense' }
p:option('--rounds', 'Turns of each program'):convert(tonumber):default '5'
p:option('--steps', 'Counted steps of a turn'):convert(tonumber):default '6'
p:option('--threads', 'Threads of each program'):convert(tonumber):default(tostring(require('lumoe').threads()))
p:option('--venv', 'Where the peers are installed'):default(
  path.join(os.getenv 'XDG_CACHE_HOME' or path.join(os.getenv 'HOME', '.cache'), 'lumoe', 'peers'))
p:flag('--no-peers', 'Lumoe alone')
local opts = p:parse(arg)

-- ---- one comparison ------------------------------------------------------------------------

local function compare(kind, precision, batches_of)
  local job = jobs.new(kind, batches_of, { threads = opts.threads, precision = precision })
  local file = turns.write(job)

  local threads = ('OMP_NUM_THREADS=%d '):format(opts.threads)
  local python = ('env %s%%s %s/bin/python3 %s/peers/step.py %s '):format(threads, quote(opts.venv), quote(here), quote(file))
  local intel = ('LD_PRELOAD=%s/mkl_as_intel.so'):format(quote(opts.venv))
  local programs = { turns.start('lumoe', ('env %s%s %s/step.lua %s'):format(threads, quote(arg[-1]), quote(here), quote(file))) }
  for _, peer in ipairs(opts.no_peers and {} or kind == 'moe' and { 'nllb', 'nllb_mended' } or { 'dense' }) do
    programs[#programs + 1] = turns.start(peer, python:format '' .. peer)
    if precision == 'f32' and peer ~= 'nllb' then
      programs[#programs + 1] = turns.start(peer .. ' intel', python:format(intel) .. peer)
    end
  end

  local n, each, speeds = #job.batches, math.max(opts.steps, #job.batches), {}
  for i, program in ipairs(programs) do
    program:turn(n + 2) -- every shape once: kernels are made, pools filled
    speeds[i] = {}
  end
  for _ = 1, opts.rounds do
    for i, program in ipairs(programs) do
      program:turn(1)
      local ms, tokens, total = program:turn(each), 0, 0
      program.at = program.at or n + 2
      for s = 1, each do
        tokens = tokens + job.batches[(program.at + s) % n + 1].tokens
        total = total + ms[s]
      end
      program.at = program.at + each + 1
      if n == 1 then tokens, total = job.batches[1].tokens, median(ms) end
      table.insert(speeds[i], tokens / total * 1e3)
    end
  end

  local ours = programs[1].last
  local own_speed = median(speeds[1])
  for i, program in ipairs(programs) do
    local speed = median(speeds[i])
    io.write(('%-6s %-5s %-8s %-17s %8.0f %7.2f %9.0f %7s %8.1f  %5.2f M\n'):format(kind, precision, batches_of, program.name,
      speed, own_speed / speed, program.last.rss, ('%.0f%%'):format(100 * ours.rss / program.last.rss),
      i == 1 and ours.tensors or 0, program.about.parameters / 1e6))
    io.flush()
    program:close()
  end
  os.remove(file)
end

-- ---- start-up ------------------------------------------------------------------------------

local function start_up()
  local programs = {
    { 'lumoe', ('%s -e "require(\'lumoe\').zeros(2, 3)"'):format(quote(arg[-1])) },
    not opts.no_peers and { 'torch', ('%s/bin/python3 -c "import torch; torch.zeros(2, 3)"'):format(quote(opts.venv)) } or nil,
  }
  local ms = {}
  for _ = 1, 5 do
    for i, program in ipairs(programs) do
      ms[i] = ms[i] or {}
      local begun = clock()
      assert(os.execute(program[2]) == 0)
      table.insert(ms[i], (clock() - begun) * 1e3)
    end
  end
  for i, program in ipairs(programs) do
    io.write(('start to first tensor  %-6s %7.1f ms\n'):format(program[1], median(ms[i])))
  end
end

if not opts.no_peers then
  assert(os.execute(('sh %s/peers/setup.sh %s'):format(quote(here), quote(opts.venv))) == 0, 'the peers could not be set up')
end
start_up()
io.write(('\n%-6s %-5s %-8s %-17s %8s %7s %9s %7s %8s\n'):format('model', 'type', 'batches', 'program', 'tokens/s', 'ours x', 'RSS MiB',
  'ours', 'tensors'))
for _, kind in ipairs { 'moe', 'dense' } do
  for _, precision in ipairs { 'f32', 'bf16' } do
    for _, batches in ipairs { 'fixed', 'varying' } do
      if (not opts.model or opts.model == kind) and (not opts.precision or opts.precision == precision)
        and (not opts.batches or opts.batches == batches) then
        compare(kind, precision, batches)
      end
    end
  end
end
