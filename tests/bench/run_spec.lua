--- The benchmark's own side of every group at a test's size, and its arithmetic beside a peer made of shell.
-- slow: starts some dozen programs
local json = require 'cjson'
local dir = require 'pl.dir'
local file = require 'pl.file'
local path = require 'pl.path'
local utils = require 'pl.utils'
local routing = require 'tests.bench.routing'

local quote = utils.quote_arg
local program = os.getenv 'LUMOE'

local folder
before_each(function()
  folder = path.tmpname()
  os.remove(folder)
  dir.makepath(folder)
end)
after_each(function() dir.rmtree(folder) end)

-- Runs the benchmark; returns its records, what it printed, and whether it went well.
local function bench(...)
  local results = path.join(folder, 'results.json')
  local command = ('cd %s && OMP_NUM_THREADS=1 %s tests/bench/run.lua --tiny --threads 1 --out %s --json %s'):format(
    quote(path.currentdir()), quote(program), quote(folder), quote(results))
  for _, word in ipairs { ... } do command = command .. ' ' .. quote(word) end
  local ok, _, out, err = utils.executeex(command)
  return ok and json.decode(file.read(results)) or {}, out .. err, ok
end

local function finite(x) return type(x) == 'number' and x > 0 and x < math.huge end

describe('the benchmark', function()
  for group, some in pairs { products = 'd', layer = 'relu', models = 'switch', ops = 'softmax', exchange = 'all_reduce',
    growth = 'ranks', decoding = 'nllb' } do
    it('measures our side of ' .. group, function()
      local records, printed, ok = bench('--no-peers', '--group', group, '--name', some)
      assert.is_true(ok, printed)
      assert.is_true(#records > 0, printed)
      for _, r in ipairs(records) do
        assert.equal(group, r.group)
        assert.is_truthy(r.name:find(some, 1, true))
        assert.is_string(r.unit)
        assert.is_true(finite(r.ours), r.name)
        assert.equal(r.peer ~= nil, r.peer_name ~= nil)
        if r.peer then assert.is_truthy(r.peer_name:find 'lumoe') end -- another of ours
        if group == 'products' or group == 'decoding' then assert.is_true(finite(r.limit_share)) end
      end
      assert.matches('</svg>', file.read(path.join(folder, group .. '.svg')))
      local text = file.read(path.join(folder, 'results.md'))
      for _, part in ipairs { 'CPU: ', 'Date: ', 'LuaJIT', records[1].name } do
        assert.is_truthy(text:find(part, 1, true), part)
      end
    end)
  end

  it('says what has no line', function()
    local _, printed, ok = bench('--no-peers', '--group', 'layer', '--experts', '7')
    assert.is_false(ok)
    assert.matches('no line has all that was asked for', printed)
  end)

  it('says that peers cannot be set up, and what can be done without', function()
    local _, printed, ok = bench('--group', 'layer', '--venv', '/dev/null/peers')
    assert.is_false(ok)
    assert.matches('the peers could not be set up in /dev/null/peers', printed)
    assert.matches('%-%-no%-peers', printed)
  end)
end)

-- A venv whose Python is a shell script: every step of the model `loop` takes 2 s, of `hf_grouped` 4 s; others fail.
local PEER = [[#!/bin/sh
[ "$1" != -c ] || { echo 'Python of shell'; exit 0; }
echo '{"torch": "none"}'
while read -r line; do
  case $line in
    end) exit ;;
    drop) echo '{}' ;;
    job*) ms=; file=${line#job }
      case $(cat "$file") in *'"model":"loop"'*) ms=2000 ;; *'"model":"hf_grouped"'*) ms=4000 ;; esac
      if [ -n "$ms" ]; then echo '{"parameters": 1}'; else echo '{"error": "no such layer"}'; fi ;;
    1) echo "{\"ms\": [$ms], \"forward\": [$((ms / 2))]}" ;;
    *) echo '{"error": "a turn of several slow steps"}' ;;
  esac
done
]]

describe('a comparison', function()
  local function venv()
    local place = path.join(folder, 'venv')
    dir.makepath(path.join(place, 'bin'))
    file.write(path.join(place, 'bin', 'python3'), PEER)
    assert(os.execute('chmod +x ' .. quote(path.join(place, 'bin', 'python3'))) == 0)
    for _, name in ipairs { 'requirements.txt', 'deepspeed.txt' } do -- as if it were set up
      file.copy(path.join('tests', 'bench', 'peers', name), path.join(place, name))
    end
    file.write(path.join(place, 'mkl_as_intel.so'), '')
    return place
  end

  it('gives our speed over the peer\'s, marks the fastest, and tells what could not be measured', function()
    local records, printed, ok = bench('--group', 'layer', '--experts', '8', '--top-k', '2', '--dtype', 'bf16', '--activation', 'swiglu',
      '--routing', 'balanced', '--venv', venv())
    assert.is_true(ok, printed)
    local speed, ours_of, best = {}, {}, nil
    for _, r in ipairs(records) do
      assert.equal('swiglu E 8 k 2 balanced', r.name)
      assert.equal('bf16', r.dtype)
      speed[r.peer_name], ours_of[r.peer_name] = r.peer, r.ours
      assert.near(r.ours / r.peer, r.ratio, 1e-9 * r.ratio)
      assert.is_true(finite(r.limit_share))
      assert.equal(1000 * (r.peer_name == 'loop' and 1 or 2), r.peer_parts.forward)
      if r.best then best = (best or '') .. r.peer_name end
    end
    assert.equal('loop', best)
    assert.near(32 / 2, speed.loop, 1e-9) -- 32 tokens in 2 s
    assert.near(32 / 4, speed.hf_grouped, 1e-9)
    assert.equal(2, #records)
    assert.matches('Not measured: [^\n]*grouped: grouped: no such layer', printed)
    local text = file.read(path.join(folder, 'results.md'))
    assert.matches('Python of shell', text)
    for peer, name in pairs { loop = 'loop', ['the fastest of each line'] = 'loop', hf_grouped = 'hf_grouped' } do
      assert.matches(('| layer | bf16 | %s | 1 | %.2f |'):format(peer, ours_of[name] / speed[name]), text, 1, true)
    end
  end)
end)

describe('a routing', function()
  local function counts(ids, experts, top_k)
    local list = {}
    for e = 0, experts - 1 do list[e] = 0 end
    for first = 1, #ids, top_k do
      local seen = {}
      for i = first, first + top_k - 1 do
        assert.is_true(ids[i] >= 0 and ids[i] < experts)
        assert.is_nil(seen[ids[i]], 'one expert twice for a token')
        seen[ids[i]] = true
        list[ids[i]] = list[ids[i]] + 1
      end
    end
    return list
  end

  it('that is balanced gives every expert as many tokens', function()
    for _, case in ipairs { { 64, 8, 1 }, { 64, 8, 8 }, { 128, 32, 2 } } do
      local tokens, experts, top_k = unpack(case)
      local ids = routing.ids('balanced', tokens, experts, top_k)
      assert.equal(tokens * top_k, #ids)
      for e, n in pairs(counts(ids, experts, top_k)) do assert.equal(tokens * top_k / experts, n, 'expert ' .. e) end
    end
  end)

  it('after Zipf gives the r-th expert a share of 1 / r', function()
    local ids = routing.ids('zipf', 20000, 8, 1)
    local list = counts(ids, 8, 1)
    local most, used = routing.load(ids, 8)
    local harmonic, sorted = 0, {}
    for r = 1, 8 do
      harmonic = harmonic + 1 / r
      sorted[r] = list[r - 1]
    end
    table.sort(sorted, function(a, b) return a > b end)
    assert.equal(8, used)
    assert.equal(sorted[1], most)
    for r = 1, 8 do assert.near(20000 / r / harmonic, sorted[r], 300) end
    assert.same(ids, routing.ids('zipf', 20000, 8, 1)) -- the same in every process
    counts(routing.ids('zipf', 200, 8, 8), 8, 8)
    counts(routing.ids('zipf', 500, 128, 8), 128, 8)
  end)
end)
