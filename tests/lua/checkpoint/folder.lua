--- A folder for one spec, gone when it ends; and small files whole.
local dir = require 'pl.dir'
local file = require 'pl.file'

local folder = {}

--- Calls f(path) with a fresh empty folder.
function folder.with(f)
  local path = os.tmpname()
  os.remove(path)
  assert(dir.makepath(path))
  local ok, message = pcall(f, path)
  dir.rmtree(path)
  if not ok then error(message, 0) end
end

function folder.read(path) return assert(file.read(path, true)) end
function folder.write(path, text) assert(file.write(path, text, true)) end

--- Runs the program under test on a script; `before` is shell to run first. Gives output and exit code.
function folder.lumoe(arguments, before)
  local program = os.getenv 'LUMOE' or 'build/bin/lumoe'
  local pipe = assert(io.popen(('%s %s %s 2>&1; echo "exit $?"'):format(before or '', program, arguments)))
  local output = pipe:read '*a'
  pipe:close()
  return output, tonumber(output:match 'exit (%d+)%s*$')
end

return folder
