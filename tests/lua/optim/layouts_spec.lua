--- AdamW with bf16 moments: to the bit the same however parameters are cut and divided between ranks, or offloaded.
-- slow: jobs of up to four ranks
local folder = require 'tests.lua.checkpoint.folder'
local source = require 'lumoe.checkpoint.source'

-- By number of ranks; the first of one rank is what all others are compared with.
local LAYOUTS = {
  [1] = { 'tp=1', 'offload=optimizer', 'offload=parameters' },
  [2] = { 'zero=1/1', 'zero=2/3', 'tp=2,ep=2', 'tp=2,etp=2,zero=3/3,offload=parameters' },
  [4] = { 'zero=3/1', 'tp=2,ep=2,zero=1/2', 'tp=4,ep=4', 'etp=2,ep=2,zero=2/2,offload=optimizer' },
}
local STEP = 4

-- Every tensor of a checkpoint as text of its bits.
local function bits_of(path)
  local from, all = source.open(path), {}
  for name in pairs(from.tensors) do
    local t = from:tensor(name)
    all[name] = t.dtype .. ' ' .. require('ffi').string(t:data_ptr(), t:numel() * (t.dtype == 'bf16' and 2 or 4))
  end
  from:close()
  return all
end

describe('bf16 moments', function()
  for _, kind in ipairs { 'dtype=f32', 'dtype=bf16', 'dtype=bf16,masters=no' } do
    it('are the same under every layout, to the bit: ' .. kind, function()
      folder.with(function(dir)
        local want
        for _, ranks in ipairs { 1, 2, 4 } do
          local words = {}
          for i, layout in ipairs(LAYOUTS[ranks]) do words[i] = layout .. ',' .. kind end
          local to = ('%s/%d'):format(dir, ranks)
          local launcher = ranks == 1 and '' or ('LUMOE_DEBUG=collectives mpirun -np %d --oversubscribe --allow-run-as-root'):format(ranks)
          assert.equal('exit 0\n', (folder.lumoe(('tests/lua/optim/layouts.lua %s %s'):format(to, table.concat(words, ' ')),
            'OMP_NUM_THREADS=1 ' .. launcher)))
          for i, word in ipairs(words) do
            local got, count = bits_of(('%s/%d/checkpoint-%d'):format(to, i, STEP)), 0
            want = want or got
            for name, text in pairs(got) do
              assert.is_true(want[name] == text, ('%s of %s on %d ranks'):format(name, word, ranks))
              count = count + 1
            end
            assert.equal(kind == 'dtype=bf16' and 23 or 18, count)
          end
        end
      end)
    end)
  end
end)
