--- checkpoint.load for programs: what is wrong with the files is a sentence for whoever runs them.
local lumoe = require 'lumoe'

return function(at, into)
  local ok, result = pcall(lumoe.checkpoint.load, at, into)
  if ok then return result end
  lumoe.refuse('%s', (tostring(result):gsub('^.-: checkpoint%.load: ', '')))
end
