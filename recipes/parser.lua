--- A parser of a recipe's command line (argparse), of which the first rank alone speaks.
local lumoe = require 'lumoe'
local argparse = require 'argparse'
local host = require 'lumoe.host'

---@param name string         as it is called
---@param description string
return function(name, description)
  local p = argparse(name, description)
  if (host.rank or 0) > 0 then
    function p.error(_, message) lumoe.refuse('%s', message) end -- after the first rank, which ends the job
    function p.get_help() os.exit(0) end
  end
  return p
end
