--- A temporary directory of files for a spec.
local shell = require 'lumoe.data.shell'

--- Makes one; `files` maps names to contents. Remove it with shell.remove.
---@param files table<string, string>?
---@return string
return function(files)
  local dir = os.tmpname()
  os.remove(dir)
  shell.mkdir(dir)
  for name, content in pairs(files or {}) do
    if name:find('/') then shell.mkdir(dir .. '/' .. name:match('^(.*)/')) end
    shell.write(dir .. '/' .. name, content)
  end
  return dir
end
