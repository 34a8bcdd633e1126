--- The recipe's training step beside PyTorch's, paired in one run:
--
--   ./lumoe tests/bench/spine.lua                 all of it
--   ./lumoe tests/bench/spine.lua --help
--
-- Every program that is compared is a process of its own that makes its model, then waits; it does as many
-- steps as a line on its standard input says (`end`: no more), and answers with a line of JSON: { ms = { .. }, loss, rss }.
-- They take turns, so that whatever else the machine does falls on all alike; each turn's first step is
-- not counted. Tokens are those of the source and of the target without padding.
--
--   lumoe       recipes/translate/model.lua (step.lua)
--   nllb        Hugging Face's NLLB-MoE, the same sizes, top-2 as it always is (peers/step.py), as shipped
--   mended      the same without a mistake of Transformers 5.23, by which its experts do four times the work
--   dense       nn.Transformer, against ours with one expert
--   .. intel    the same with PyTorch's MKL told that the CPU is Intel's (peers/mkl_as_intel.c)
local argparse = require 'argparse'
local json = require 'cjson'
local path = require 'pl.path'
local clock = require('lumoe.log.terminal').clock

local here = path.abspath(path.dirname(arg[0]))

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

local SIZES = { vocab = 8000, pad = 3, dim = 192, heads = 4, hidden = 640, encoder_layers = 4, decoder_layers = 2,
  experts = 8, top_k = 2, capacity = 0, select = 'random', balance = 0.01, noise = 0, dropout = 0.1, label_smoothing = 0.1,
  ep = 1 }

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end
local function median(list)
  local sorted = { unpack(list) }
  table.sort(sorted)
  local n = #sorted
  return n % 2 == 1 and sorted[(n + 1) / 2] or (sorted[n / 2] + sorted[n / 2 + 1]) / 2
end

-- ---- batches -------------------------------------------------------------------------------

local function batch(rows, src_len, tgt_len, random)
  local b = { rows = rows, src_len = src_len, tgt_len = tgt_len, src_lens = {}, tgt_lens = {}, tgt_tokens = 0, tokens = 0 }
  for r = 1, rows do -- the recipe sorts by length, so little is padding
    b.src_lens[r] = r == 1 and src_len or random(math.ceil(0.85 * src_len), src_len)
    b.tgt_lens[r] = r == 1 and tgt_len or random(math.ceil(0.85 * tgt_len), tgt_len)
    b.tgt_tokens = b.tgt_tokens + b.tgt_lens[r]
    b.tokens = b.tokens + b.src_lens[r] + b.tgt_lens[r]
  end
  return b
end

local BATCHES = {
  fixed = function(random) return { batch(40, 48, 48, random) } end,
  varying = function(random) -- 4096 tokens of source and target; lengths as in short help texts
    local list = {}
    for i = 1, 16 do
      local src = random(8, 64)
      local tgt = math.max(6, math.floor(src * (0.8 + 0.4 * random())))
      list[i] = batch(math.max(8, math.floor(4096 / (src + tgt) / 8) * 8), src, tgt, random)
    end
    return list
  end,
}

-- ---- programs ------------------------------------------------------------------------------

local Program = {}
Program.__index = Program

local function start(name, command)
  local pipe = os.tmpname()
  os.remove(pipe)
  assert(os.execute('mkfifo ' .. quote(pipe)) == 0)
  local self = setmetatable({ name = name, ms = {}, tokens = {} }, Program)
  self.output = io.popen(('exec %s < %s'):format(command, quote(pipe)))
  self.input = assert(io.open(pipe, 'w'))
  os.remove(pipe)
  self.about = self:read()
  return self
end

function Program:read()
  local line = self.output:read '*l'
  if not line then error(self.name .. ' ended early; what it printed is above', 0) end
  return json.decode(line)
end

function Program:turn(steps)
  self.input:write(steps, '\n')
  self.input:flush()
  self.last = self:read()
  return self.last.ms
end

function Program:close()
  self.input:write 'end\n'
  self.input:close()
  self.output:close()
end

local function write_job(job)
  local name = os.tmpname()
  local file = assert(io.open(name, 'w'))
  file:write(json.encode(job))
  file:close()
  return name
end

-- ---- one comparison ------------------------------------------------------------------------

local function compare(kind, precision, batches_of)
  math.randomseed(7)
  local job = { threads = opts.threads, precision = precision }
  for key, value in pairs(SIZES) do job[key] = value end
  if kind == 'dense' then job.experts, job.top_k = 1, 1 end
  job.batches = BATCHES[batches_of](math.random)
  local file = write_job(job)

  local threads = ('OMP_NUM_THREADS=%d '):format(opts.threads)
  local python = ('env %s%%s %s/bin/python3 %s/peers/step.py %s '):format(threads, quote(opts.venv), quote(here), quote(file))
  local intel = ('LD_PRELOAD=%s/mkl_as_intel.so'):format(quote(opts.venv))
  local programs = { start('lumoe', ('env %s%s %s/step.lua %s'):format(threads, quote(arg[-1]), quote(here), quote(file))) }
  for _, peer in ipairs(opts.no_peers and {} or kind == 'moe' and { 'nllb', 'nllb_mended' } or { 'dense' }) do
    programs[#programs + 1] = start(peer, python:format '' .. peer)
    if precision == 'f32' and peer ~= 'nllb' then
      programs[#programs + 1] = start(peer .. ' intel', python:format(intel) .. peer)
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
