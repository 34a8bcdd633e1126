--- What the groups of the benchmark share: our program beside each peer in turn, and what came out.
--
-- A comparison (`compare`) is of our program with one peer after the other; the two take turns (turns.lua), so a ratio is
-- that of a pair measured together, and at most two programs hold their model at a time.
local clock = require('lumoe.log.terminal').clock
local machine = require 'tests.bench.machine'
local turns = require 'tests.bench.turns'

local Bench = {}
Bench.__index = Bench

local quote = turns.quote

--- opts: threads, rounds, seconds (of a turn), quick, tiny, peers (false: ours alone), venv, lumoe (the program), here
-- (this folder); log: a file for what peers print; only: field -> value, the lines that are wanted; name: a
-- part of their names; tell(record) is called as results come.
local function new(opts)
  return setmetatable({ opts = opts, records = {}, failures = {}, shares = {}, pool = {} }, Bench)
end

-- ---- which lines ---------------------------------------------------------------------------

--- Whether a line is wanted. fields: what may be asked for by the options of the same names; quick: it is among
-- those of a quick run.
function Bench:wanted(fields, quick)
  local asked = false
  for key, value in pairs(self.opts.only) do
    if fields[key] ~= nil then
      asked = true
      if tostring(fields[key]) ~= tostring(value) then return false end
    end
  end
  return asked or quick or not self.opts.quick
end

--- A size, or in a test a tiny one.
function Bench:size(normal, tiny) return self.opts.tiny and tiny or normal end

-- ---- programs ------------------------------------------------------------------------------

--- The shell's command for one of ours (programs/NAME.lua) with a job's file. launch: a launcher's command before it.
function Bench:own(name, file, launch, threads)
  return ('env OMP_NUM_THREADS=%d %s %s %s/programs/%s.lua %s'):format(threads or self.opts.threads, launch or '',
    quote(self.opts.lumoe), quote(self.opts.here), name, quote(file or ''))
end

--- The command for a peer (peers/NAME.py). intel: PyTorch's MKL is told that the CPU is Intel's.
function Bench:python(name, intel)
  return ('env OMP_NUM_THREADS=%d %s %s/bin/python3 %s/peers/%s.py 2>>%s'):format(self.opts.threads,
    intel and ('LD_PRELOAD=%s/mkl_as_intel.so'):format(quote(self.opts.venv)) or '', quote(self.opts.venv),
    quote(self.opts.here), name, quote(self.opts.log))
end

-- A peer with the job. Importing PyTorch takes seconds, so one process does one job after the other, unless its memory is
-- to be measured (alone).
-- A peer that is a program of ours (program, and what it has beside the job: another job, launch, threads) is always alone.
local function peer_with(self, peer, job)
  if peer.program then
    local own = peer.job or job
    own.threads = own.threads or peer.threads or self.opts.threads
    local file = turns.write(own)
    local program = turns.start(peer.name, self:own(peer.program, file, peer.launch, peer.threads))
    os.remove(file)
    return program
  end
  local key = peer.script .. (peer.intel and ' intel' or '')
  local program = not peer.alone and self.pool[key]
  if not program or program.ended then
    program = turns.start(peer.name, self:python(peer.script, peer.intel))
    if not peer.alone then self.pool[key] = program end
  end
  program.name = peer.name
  local with_model = {}
  for k, v in pairs(job) do with_model[k] = v end
  with_model.model = peer.model
  local file = turns.write(with_model)
  local ok, message = pcall(program.take, program, file)
  os.remove(file)
  if not ok then error(message, 0) end
  return program
end

-- ---- comparing -----------------------------------------------------------------------------

-- The limits as measured so far, at the start and at the end of each group; a disturbed measurement is none, so the most
-- counts.
local function measure(self)
  if self.limits and self.opts.tiny then return end
  local limits = machine.peak(self.opts.here, self.opts.threads)
  self.limits = self.limits or limits
  for name, value in pairs(limits) do self.limits[name] = math.max(self.limits[name], value) end
end

--- A group begins, which has so many minutes, or as many as it wants: so that the whole ends in time on a slow machine too,
-- pairs have one round after three quarters of them; after all of them ours has one alone, and peers are left out, which is told.
function Bench:begin(group, minutes)
  self.group, self.begun, self.minutes = group, clock(), minutes
  measure(self)
end

-- The share of its minutes that the group has used.
local function spent(self) return self.minutes and (clock() - self.begun) / (60 * self.minutes) or 0 end

--- A group ends: shares of the limit are of what was measured at most.
function Bench:finish()
  for _, program in pairs(self.pool) do program:close() end
  self.pool = {}
  measure(self)
  for record, share in pairs(self.shares) do record.limit_share = share(self.limits) end
end

--- record: name, dtype, unit, ours, peer?, peer_name?, ours_parts?, peer_parts?, memory_share? (ours
-- over the peer's, the most that each process had); a unit of time is better when it is
-- less. share(limits): how much of the physical limit ours reaches.
function Bench:add(record, share)
  record.group, record.quick = self.group, self.opts.quick
  if record.peer then
    local less_is_better = record.unit == 'ns' or record.unit == 'ms'
    record.ratio = less_is_better and record.peer / record.ours or record.ours / record.peer
  end
  if share then
    self.shares[record], record.limit_share = share, share(self.limits)
  end
  self.records[#self.records + 1] = record
  if self.opts.tell then self.opts.tell(record) end
  return record
end

function Bench:fail(name, peer, message)
  table.insert(self.failures, ('%s, %s: %s'):format(name, peer, message))
  if self.opts.tell then self.opts.tell { group = self.group, name = name, dtype = '', peer_name = peer, failed = message } end
end

--- One line: our program beside its peers. Returns what was added.
---@param line table
--  name, dtype, quick, fields (see wanted)
--  job        what all programs are given, with `threads` unless it has them
--  program    ours, of programs/; launch, threads: how, if it needs more
--  peers      { { name, script, model, intel = false, alone = false }, .. }, script being of peers/; or
--             { name, program, job = this one's, launch, threads }, another of ours
--  unit, value(ms, result)   a step's milliseconds in that unit
--  cycle      steps that differ and count together (turns.lua)
--  limit      function(result, limits) -> the share of the physical limit that ours reaches
--  parts      names of what is kept of the programs' answers beside ms
function Bench:compare(line)
  if not self:wanted(line.fields or {}, line.quick) or not line.name:find(self.opts.name or '', 1, true) then return {} end
  line.job.threads = line.job.threads or line.threads or self.opts.threads
  local file = turns.write(line.job)
  local ours = turns.start('lumoe', self:own(line.program, file, line.launch, line.threads))
  local pace = { rounds = self.opts.rounds, seconds = self.opts.seconds, cycle = line.cycle, quick = self.opts.quick }

  local added = {}
  local function parts(result)
    local kept = { ms = result.ms, samples = result.samples }
    for _, name in ipairs(line.parts or {}) do kept[name] = result[name] end
    return kept
  end
  local function add(own, other, peer)
    local memory = other and peer.alone and own.rss / other.rss or nil
    added[#added + 1] = self:add({ name = line.name, dtype = line.dtype, unit = line.unit, memory_share = memory,
      ours = line.value(own.ms, own), ours_parts = parts(own),
      peer = other and line.value(other.ms, other), peer_name = peer and peer.name, peer_parts = other and parts(other) },
      line.limit and function(limits) return line.limit(own, limits) end)
  end

  local peers = {}
  for _, peer in ipairs(line.peers or {}) do
    if peer.program or self.opts.peers then peers[#peers + 1] = peer end
  end
  for _, peer in ipairs(peers) do
    local program
    local ok, message = pcall(function()
      if spent(self) >= 1 then error('no time was left for it', 0) end
      pace.rounds = spent(self) < 0.75 and self.opts.rounds or 1
      program = peer_with(self, peer, line.job)
      if line.check then line.check(ours.about, program.about) end
      local own, other = unpack(turns.alternate({ ours, program }, pace))
      add(own, other, peer)
    end)
    if not ok then
      if ours.ended then error(message, 0) end
      self:fail(line.name .. ' ' .. line.dtype, peer.name, message)
    end
    if program and (peer.alone or peer.program) then program:close()
    elseif program and not program.ended then pcall(program.ask, program, 'drop') end
  end
  if spent(self) >= 1 then pace.rounds = 1 end
  if #added == 0 then add(turns.alternate({ ours }, pace)[1]) end
  ours:close()
  os.remove(file)
  return added
end

return new
