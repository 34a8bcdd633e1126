--- What recipes/exchange.lua says of eight ranks that take themselves for two hosts.
local cjson = require 'cjson'
local file = require 'pl.file'
local run = require 'tests.recipes.run'

local lumoe = os.getenv 'LUMOE' or 'build/bin/lumoe'

local function figures(...)
  local json = os.tmpname()
  local launcher = 'LUMOE_DEBUG=collectives LUMOE_HOSTS=4,4 mpirun -np 8 --oversubscribe --allow-run-as-root'
  local pipe = assert(io.popen(('%s %s recipes/exchange.lua --json %s %s 2>&1; echo "exit $?"'):format(launcher, lumoe, json,
    table.concat({ ... }, ' '))))
  local output = pipe:read '*a'
  pipe:close()
  assert.matches('exit 0\n$', output)
  local by = {}
  for _, row in ipairs(cjson.decode(file.read(json))) do
    by[row.routing] = by[row.routing] or {}
    by[row.routing][row.exchange] = row
  end
  os.remove(json)
  return by
end

describe('the exchange of eight ranks, 64 experts, top 8', function()
  local by

  setup(function() by = figures('--tokens', 128) end)

  it('carries exactly k T (1 - 1/R) rows where routing is even', function()
    assert.equal(8 * 8 * 128 * 7 / 8, by.turning.rows.rows)
    assert.equal(by.turning.rows.rows, by.turning.padded.rows)
  end)

  it('carries 32 % fewer when a token goes to each rank once', function()
    assert.near(0.679, by.random.once.expected / by.random.rows.expected, 5e-4)
    assert.near(by.random.once.expected, by.random.once.rows, 0.02 * by.random.once.expected)
    assert.near(by.random.rows.expected, by.random.rows.rows, 0.02 * by.random.rows.expected)
    assert.equal(by.random.once.rows, by.random['once, in 4 parts'].rows)
  end)

  it('carries more when padded, the more so the less even it is', function()
    assert.is_true(by.random.padded.rows > by.random.rows.rows)
    assert.is_true(by.skewed.padded.rows > 2 * by.skewed.rows.rows)
  end)

  it('carries fewer where experts that are used together live together', function()
    assert.is_true(by.grouped['once, placed'].rows < 0.7 * by.grouped.once.rows)
    assert.is_true(by.skewed['once, placed'].busiest < 0.5 * by.skewed.once.busiest)
    assert.is_true(by.skewed['once, shadows'].busiest < 0.5 * by.skewed.once.busiest)
    assert.is_true(by.grouped['once, placed'].host_bytes < 0.7 * by.grouped.once.host_bytes)
  end)

  it('sends one message a rank between hosts, not one for every pair, with the same bytes', function()
    assert.equal(4 * 2 * 4 * 4, by.turning.rows.host_messages) -- four legs, both ways, four ranks to four
    assert.equal(4 * 2 * 4, by.turning.two_level.host_messages)
    assert.equal(by.random.rows.host_bytes, by.random.two_level.host_bytes)
  end)

  it('takes a token to each host once when both', function()
    local both = by.random['once, two_level']
    assert.is_true(both.host_bytes < 0.45 * by.random.once.host_bytes)
    assert.is_true(both.host_messages < 0.3 * by.random.once.host_messages)
  end)
end)

describe('recipes/exchange.lua', function()
  it('holds where experts, ranks and top k do not divide each other', function()
    for _, numbers in ipairs { '--experts 2 --top-k 2 --tokens 20', '--experts 10 --top-k 3 --tokens 1' } do
      local code, output = run.shell(run.command('recipes/exchange.lua', numbers, { ranks = 3 }))
      assert.equal(0, code, output)
      assert.matches('random +once ', output)
    end
  end)

  it('expects of random routing what there is, with shares that differ', function()
    local json = os.tmpname()
    finally(function() os.remove(json) end)
    assert.equal(0, (run.shell(run.command('recipes/exchange.lua', '--experts 2 --top-k 2 --tokens 20 --routing random --json ' .. json,
      { ranks = 3 }))))
    local once = cjson.decode(file.read(json))[2]
    assert.same({ 'once', 80, 80 }, { once.exchange, once.rows, once.expected }) -- two ranks have one expert each, one has none
  end)

  it('says what is wrong with its options', function()
    for options, want in pairs {
      ['--experts 4 --top-k 5'] = '--top-k 5: there are only 4 experts', ['--top-k 0'] = "'0' is not a whole number",
      ['--tokens x'] = "'x' is no number", ['--routing even'] = "must be one of 'turning'",
      ['--json /no/such'] = 'lumoe: --json /no/such: No such file or directory',
    } do
      local code, output, errors = run.shell(run.command('recipes/exchange.lua', options))
      assert.same({ 1, '' }, { code, output })
      assert.truthy(errors:find(want, 1, true), errors)
    end
  end)
end)
