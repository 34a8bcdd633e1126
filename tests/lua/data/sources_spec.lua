local sources = require 'lumoe.data.sources'

describe('sources', function()
  for _, set in ipairs { 'small', 'all' } do
    it('are whole: ' .. set, function()
      local seen = {}
      for _, source in ipairs(sources.named(set)) do
        assert.is_nil(seen[source.name])
        seen[source.name] = true
        local reader = require('lumoe.data.readers.' .. source.reader)
        assert.is_function(reader.read)
        assert.is_true(source.lists or reader.wants ~= nil)
        assert.equal(source.english ~= nil or source.lists == true, reader.english ~= nil)
        assert.is_true(source.lists or #source.packages 'es' > 0)
        local named = {}
        for _, name in ipairs(source.lists and {} or source.packages 'es') do
          assert.is_nil(named[name], source.name .. ': ' .. name)
          named[name] = true
        end
      end
    end)
  end

  it('names an unknown set', function()
    assert.error_matches(function() sources.named 'named' end, 'sources: "named" is none; give small or all')
    assert.error_matches(function() sources.named 'some' end, '"some" is none')
  end)
end)
