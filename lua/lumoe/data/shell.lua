--- Running the few ordinary tools that data preparation needs (apt-get, dpkg-deb, mkdir, rm).
local status = require 'lumoe.status'

local shell = {}

--- A word that the shell takes literally.
---@param word string
---@return string
function shell.quote(word) return "'" .. word:gsub("'", "'\\''") .. "'" end

--- Words quoted and joined.
---@param words string[]
---@return string
function shell.join(words)
  local quoted = {}
  for i, word in ipairs(words) do quoted[i] = shell.quote(word) end
  return table.concat(quoted, ' ')
end

--- Runs a command and calls `on_line` for each line it prints; returns its exit code.
-- The code comes through the pipe itself, because Lua 5.1's `close` does not return it.
---@param command string
---@param on_line fun(line: string)?
---@return integer
function shell.lines(command, on_line)
  local pipe = assert(io.popen('{ ' .. command .. "\n}; printf '\\001exit:%d\\n' $?", 'r'))
  local code
  for line in pipe:lines() do
    local last, exit = line:match('^(.*)\1exit:(%d+)$')
    if exit then code, line = tonumber(exit), last ~= '' and last or nil end
    if line and on_line then on_line(line) end
  end
  pipe:close()
  return code or 255
end

--- Runs a command; returns its exit code and all it printed (standard error too, where the command says 2>&1).
---@param command string
---@return integer code
---@return string output
function shell.capture(command)
  local lines = {}
  local code = shell.lines(command, function(line) lines[#lines + 1] = line end)
  return code, table.concat(lines, '\n')
end

--- Whether a program is installed.
function shell.has(program) return shell.lines('command -v ' .. shell.quote(program) .. ' >/dev/null 2>&1') == 0 end

--- Creates a directory and its parents.
function shell.mkdir(dir)
  local code, output = shell.capture('mkdir -p ' .. shell.quote(dir) .. ' 2>&1')
  if code ~= 0 then status.refuse('%s', output) end
end

--- Removes a directory tree, if it is there.
function shell.remove(dir) shell.lines('rm -rf ' .. shell.quote(dir)) end

--- A whole file, or nil.
---@param path string
---@return string?
function shell.read(path)
  local file = io.open(path, 'rb')
  if not file then return nil end
  local content = file:read('*a')
  file:close()
  return content
end

--- Writes a whole file aside and renames it into place, so that no reader ever sees a part of it.
---@param path string
---@param content string
function shell.write(path, content)
  local aside = path .. '.part'
  local file = assert(io.open(aside, 'wb'))
  assert(file:write(content))
  assert(file:close())
  assert(os.rename(aside, path))
end

return shell
