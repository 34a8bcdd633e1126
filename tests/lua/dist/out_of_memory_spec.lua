--- One rank out of memory at any moment of a training step: every rank hears of it, none hangs or crashes.
-- slow: some thousand steps over ranks
local clock_gettime = require('posix.time').clock_gettime
local program = os.getenv 'LUMOE' or 'build/bin/lumoe'

local function now()
  local t = clock_gettime(1) -- CLOCK_MONOTONIC
  return t.tv_sec + t.tv_nsec / 1e9
end

--- What the ranks write, and the seconds they take.
local function run(ranks, hosts, layout)
  local begun = now()
  local command = 'LUMOE_HOSTS=%s mpirun -np %d --oversubscribe --allow-run-as-root %s tests/lua/dist/out_of_memory.lua %q 2>&1'
  local pipe = assert(io.popen(command:format(hosts, ranks, program, layout)))
  local output = pipe:read '*a'
  pipe:close()
  return output, now() - begun
end

describe('a rank out of memory', function()
  for _, layout in ipairs { 'tp=2', 'zero=3', 'ep=2 zero=2', 'ep=2 once=yes parts=2 every=7', 'ep=2 way=two_level parts=2 every=7',
    'ep=2 shadow=1.1 every=7' } do
    it('at any moment of a step says so to all, and they go on together: ' .. layout, function()
      assert.equal('all well\n', (run(2, '1,1', layout)))
    end)
  end

  math.randomseed(os.time())
  for _, layout in ipairs { 'ep=2 zero=3', 'ep=2 zero=2 way=two_level parts=2', 'tp=2 zero=1', 'ep=4 once=yes parts=2' } do
    local at = math.random(400)
    it(('by itself ends all ranks soon, with its message first: %s, allocation %d'):format(layout, at), function()
      local output, seconds = run(4, '2,2', layout .. ' dies=' .. at)
      assert.is_true(seconds < 6, ('took %.1f s:\n%s'):format(seconds, output)) -- with 1 s to start
      local first = output:match '^[^\n]*' -- rank 3's own, or that of another which was told
      assert.matches('^%[rank %d%] tests/lua/dist/out_of_memory.lua:%d+: [^\n]*no memory', first)
      assert.is_truthy(first:find('^%[rank 3%]') or first:find('[on rank 3]', 1, true), output)
      assert.is_nil(output:find('signal', 1, true), output)
    end)
  end
end)
