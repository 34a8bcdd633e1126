--- Runs tests/lua/dist/zero.lua and reads what its ranks wrote.
local results = {}

local lumoe = os.getenv 'LUMOE' or 'build/bin/lumoe'

--- What it said, with its exit code.
function results.run(ranks, ...)
  local words = { ... }
  for i, word in ipairs(words) do words[i] = ("'%s'"):format(word) end
  local launcher = ('LUMOE_DEBUG=collectives mpirun -np %d --oversubscribe --allow-run-as-root'):format(ranks)
  local command = ('%s %s tests/lua/dist/zero.lua %s 2>&1'):format(launcher, lumoe, table.concat(words, ' '))
  local pipe = assert(io.popen(command .. '; echo "exit $?"'))
  local output = pipe:read '*a'
  pipe:close()
  return output
end

-- { number = { ['loss 1'] = 1.23, .. }, tensor = { ['grad 1 embedding.weight'] = { [element] = value } }, bytes = { [rank] = .. } }
-- What several ranks say must be the same, to the last bit of text.
local function read(file, ranks)
  local all, text = { number = {}, tensor = {}, bytes = {} }, {}
  for rank = 0, ranks - 1 do
    all.bytes[rank] = {}
    for line in io.lines(file .. '.' .. rank) do
      local name, value = line:match '^(.-) = (.*)$'
      local what, at = name:match '^(%l+ ?%d* [%w_.]+) (%d+)$'
      if name:match '^bytes' then all.bytes[rank][name:match ' (.*)'] = tonumber(value)
      else
        assert(text[name] == nil or text[name] == value, name .. ' differs between ranks')
        text[name] = value
        if what then
          all.tensor[what] = all.tensor[what] or {}
          all.tensor[what][tonumber(at)] = tonumber(value)
        else all.number[name] = tonumber(value) end
      end
    end
    os.remove(file .. '.' .. rank)
  end
  return all
end

--- What each layout gave, from one job for all of them: to start one takes longer than to train.
function results.of(ranks, layouts)
  local file, list = os.tmpname(), {}
  local said = results.run(ranks, file, unpack(layouts))
  assert(said == 'exit 0\n', said)
  for i in ipairs(layouts) do list[i] = read(('%s.%d'):format(file, i), ranks) end
  os.remove(file)
  return list
end

local function norms(want, got)
  local norm, off, count = 0, 0, 0
  for at, value in pairs(want) do
    assert(got[at], 'element ' .. at .. ' is missing')
    norm, off, count = norm + value ^ 2, off + (value - got[at]) ^ 2, count + 1
  end
  for at in pairs(got) do assert(want[at], 'element ' .. at .. ' is new') end
  return math.sqrt(norm), math.sqrt(off), count
end

--- ‖Δ‖ ≤ ε · max(‖that parameter‖, 1e-3 · ‖all‖), for gradients and for final parameters. Returns how many elements
-- were compared.
function results.compare(want, got, epsilon)
  for name, value in pairs(want.number) do
    assert(math.abs(value - got.number[name]) <= epsilon * math.abs(value),
      ('%s is %.9g, wanted %.9g'):format(name, got.number[name], value))
  end
  local total = {}
  for name, values in pairs(want.tensor) do
    local kind = name:match '^%l+'
    total[kind] = (total[kind] or 0) + norms(values, values) ^ 2
  end
  local compared = 0
  for name, values in pairs(want.tensor) do
    assert(got.tensor[name], name .. ' is missing')
    local norm, off, count = norms(values, got.tensor[name])
    assert(off <= epsilon * math.max(norm, 1e-3 * math.sqrt(total[name:match '^%l+'])),
      ('%s is off by %g of %g'):format(name, off, norm))
    compared = compared + count
  end
  return compared
end

return results
