--- The file of --json, to which the first rank writes a recipe's figures.
local lumoe = require 'lumoe'
local json = require 'lumoe.data.json'
local utils = require 'pl.utils'

--- A function that writes them; nothing without a path. A file that cannot be written is refused here, before a long run
-- and not after it; one that is there keeps what it has until then.
---@param path string?
return function(path)
  if not path or lumoe.dist.rank() > 0 then return function() end end
  local file, why = io.open(path, 'a')
  if not file then lumoe.refuse('--json %s', why) end
  file:close()
  return function(figures)
    local ok, fault = utils.writefile(path, json.encode(figures))
    if not ok then lumoe.refuse('--json %s', fault) end
  end
end
