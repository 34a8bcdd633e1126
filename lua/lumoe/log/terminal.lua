--- What is at the other end of a stream: a terminal or not, how wide, with which colours and characters.
local ffi = require 'ffi'
local stdio = require 'posix.stdio'
local time = require 'posix.time'
local unistd = require 'posix.unistd'

ffi.cdef 'int lumoe_log_ioctl(int fd, unsigned long request, ...) __asm__("ioctl");'

local TIOCGWINSZ = 0x5413 -- Linux

local terminal = {}

---@param stream file*
---@return boolean
function terminal.is(stream)
  return io.type(stream) == 'file' and unistd.isatty(stdio.fileno(stream)) == 1 and os.getenv 'TERM' ~= 'dumb'
end

--- Columns: COLUMNS where it is set, else what the terminal says, else 80.
---@param stream file*
---@return integer
function terminal.width(stream)
  local columns = tonumber(os.getenv 'COLUMNS' or '')
  if columns and columns > 0 then return columns end
  if io.type(stream) == 'file' then
    local size = ffi.new 'unsigned short[4]' -- rows, columns, and both in pixels
    if ffi.C.lumoe_log_ioctl(stdio.fileno(stream), TIOCGWINSZ, size) == 0 and size[1] > 0 then
      return size[1]
    end
  end
  return 80
end

--- How many colours to use: 0, 256 or 2^24. NO_COLOR (no-color.org) means none.
---@param stream file*
---@return integer
function terminal.colors(stream)
  if not terminal.is(stream) or (os.getenv 'NO_COLOR' or '') ~= '' then return 0 end
  local depth = os.getenv 'COLORTERM'
  return (depth == 'truecolor' or depth == '24bit') and 2 ^ 24 or 256
end

--- Whether the locale's characters are UTF-8's.
---@return boolean
function terminal.utf8()
  for _, name in ipairs { 'LC_ALL', 'LC_CTYPE', 'LANG' } do
    local value = os.getenv(name)
    if value and value ~= '' then return value:lower():find 'utf%-?8' ~= nil end
  end
  return false
end

--- Columns that a text takes, one for each character (combining and double-width ones are not told apart).
---@param text string
---@return integer
function terminal.columns(text) return #text:gsub('[\128-\191]', '') end

--- The first `columns` characters of a text.
---@param text string
---@param columns integer
---@return string
function terminal.cut(text, columns)
  if terminal.columns(text) <= columns then return text end
  local kept = 0
  for character, after in text:gmatch '([^\128-\191][\128-\191]*)()' do
    kept = kept + 1
    if kept > columns then return text:sub(1, after - #character - 1) end
  end
  return text
end

--- Seconds that never run backwards.
---@return number
function terminal.clock()
  local now = time.clock_gettime(time.CLOCK_MONOTONIC)
  return now.tv_sec + now.tv_nsec * 1e-9
end

return terminal
