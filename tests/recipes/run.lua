--- Runs the recipes as a user would, tiny: 600 Bible verses, two layers a side, four experts, and everything
-- random on (capacity with random selection, noise, dropout, denoising). One directory a spec file.
local cjson = require 'cjson'
local dir = require 'pl.dir'
local path = require 'pl.path'
local tablex = require 'pl.tablex'
local utils = require 'pl.utils'

local run = { lumoe = os.getenv 'LUMOE' or 'build/bin/lumoe' }

run.TINY = {
  langs = 'es', vocab = 500, dim = 32, heads = 2, hidden = 48, ['encoder-layers'] = 2, ['decoder-layers'] = 2,
  experts = 4, ['top-k'] = 2, noise = 1, capacity = 1, batch = 400, precision = 'f32', warmup = 10, ['log-every'] = 1,
  ['max-pieces'] = 96, directions = 'both', steps = 5, schedule = 'inverse_sqrt', ['no-eval'] = true,
}

--- A temporary directory with the sample as a user's own text: the last 24 verses are the test.
function run.workplace()
  local root = path.tmpname()
  os.remove(root)
  dir.makepath(root .. '/text')
  local train, test = assert(io.open(root .. '/text/es.tsv', 'w')), assert(io.open(root .. '/text/test.es.tsv', 'w'))
  local number = 0
  for line in io.lines 'tests/fixtures/bible_en_es.tsv' do
    number = number + 1;
    (number <= 576 and train or test):write(line, '\n')
  end
  train:close()
  test:close()
  return root
end

function run.remove(root) dir.rmtree(root) end

-- The words of a command line from option -> value; true is a flag, false leaves an option of TINY out.
local function words(options)
  local list = {}
  for name, value in pairs(tablex.update(tablex.copy(run.TINY), options)) do
    if value == true then list[#list + 1] = '--' .. name
    elseif value ~= false then list[#list + 1] = ('--%s=%s'):format(name, utils.quote_arg(tostring(value))) end
  end
  table.sort(list)
  return table.concat(list, ' ')
end

--- The command that runs one. How: ranks, flags of lumoe itself, input, wrapper: by ./lumoe -np instead of mpirun.
function run.command(script, arguments, how)
  how = how or {}
  if how.wrapper then
    return ('OMP_NUM_THREADS=1 LUMOE_DEBUG=collectives ./lumoe -np %d %s %s'):format(how.ranks, script, arguments)
  end
  local launcher = (how.ranks or 1) > 1
    and ('LUMOE_DEBUG=collectives mpirun -np %d --oversubscribe --allow-run-as-root '):format(how.ranks) or ''
  return ('OMP_NUM_THREADS=1 %s%s %s %s %s'):format(launcher, run.lumoe, how.flags or '', script, arguments)
end

--- Runs a shell command to its end. Returns its exit code, output, and errors.
function run.shell(command, input)
  local errors, from = os.tmpname(), os.tmpname()
  utils.writefile(from, input or '')
  local pipe = io.popen(('{ %s ; } < %s 2> %s; echo "exit $?"'):format(command, from, errors))
  local output, code = pipe:read('*a'):match '^(.-)exit (%d+)\n$'
  pipe:close()
  local said = utils.readfile(errors)
  os.remove(errors)
  os.remove(from)
  return tonumber(code), output, said
end

--- The command line of recipes/translate.lua in a workplace; out: a name in it.
function run.translate_command(root, out, options, how)
  options = tablex.update({ data = root .. '/text', ['data-dir'] = root .. '/data', out = root .. '/' .. out }, options or {})
  return run.command('recipes/translate.lua', words(options), how)
end

--- Runs it. Returns exit code, output, errors.
function run.translate(root, out, options, how) return run.shell(run.translate_command(root, out, options, how)) end

--- Runs it, which must go well; returns the records of metrics.jsonl.
function run.trained(root, out, options, how)
  local code, _, errors = run.translate(root, out, options, how)
  assert(code == 0, errors)
  return run.records(root, out)
end

function run.records(root, out)
  local list = {}
  for line in io.lines(('%s/%s/metrics.jsonl'):format(root, out)) do list[#list + 1] = cjson.decode(line) end
  return list
end

--- Two runs' records are of the same steps and say the same, to a relative difference.
function run.same(want, got, tolerance, fields)
  assert(#want == #got, ('%d records, wanted %d'):format(#got, #want))
  for i, record in ipairs(want) do
    assert(record.step == got[i].step, ('record %d is of step %s, wanted %d'):format(i, tostring(got[i].step), record.step))
    for _, field in ipairs(fields or { 'loss', 'grad_norm', 'dropped', 'tokens', 'lr' }) do
      local a, b = record[field], got[i][field]
      assert(math.abs(a - b) <= tolerance * math.abs(a),
        ('step %d: %s is %.9g, wanted %.9g'):format(record.step, field, b, a))
    end
  end
end

return run
