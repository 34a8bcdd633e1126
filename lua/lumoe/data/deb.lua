--- The files inside a Debian package, read straight from its tar stream; nothing is unpacked onto the disk.
local shell = require 'lumoe.data.shell'
local status = require 'lumoe.status'

local deb = {}

-- Names longer than the header's fields precede their entry: GNU puts them in an entry of type L, pax in key=value
-- records (type x).
local function pax_path(records)
  for line in records:gmatch('%d+ ([^\n]*)\n') do
    local path = line:match('^path=(.*)$')
    if path then return path end
  end
end

--- Reads a tar stream.
---@param read fun(bytes: integer): string?  the next bytes
---@param wants fun(path: string): boolean   paths without a leading ./
---@return table<string, string> files  path -> content
---@return boolean complete             whether the archive's end was seen
function deb.untar(read, wants)
  local files, long_name = {}, nil
  while true do
    local header = read(512)
    if not header or #header < 512 then return files, false end
    if header:byte(1) == 0 then return files, true end
    local name, prefix = header:match('^[^%z]+'):sub(1, 100), header:sub(346, 500):match('^[^%z]+')
    local size = tonumber(header:sub(125, 136):match('[0-7]+'), 8)
    local kind = header:sub(157, 157)
    if prefix and header:sub(258, 262) == 'ustar' and header:byte(263) == 0 then name = prefix .. '/' .. name end
    local padded = math.ceil(size / 512) * 512
    local path = (long_name or name):gsub('^%./', '')
    if kind == 'L' or kind == 'x' then
      local content = (read(padded) or ''):sub(1, size)
      long_name = kind == 'L' and content:match('^[^%z]+') or kind == 'x' and pax_path(content) or long_name
    else
      long_name = nil
      if (kind == '0' or kind == '\0') and wants(path) then
        files[path] = size > 0 and (read(padded) or ''):sub(1, size) or ''
      else
        local left = padded
        while left > 0 do
          local skipped = read(math.min(left, 65536))
          if not skipped or #skipped == 0 then return files, false end
          left = left - #skipped
        end
      end
    end
  end
end

--- The wanted files of a package. Raises when it is damaged.
---@param path string
---@param wants fun(path: string): boolean
---@return table<string, string>
function deb.read(path, wants)
  local stream = assert(io.popen('dpkg-deb --fsys-tarfile ' .. shell.quote(path) .. ' 2>/dev/null', 'r'))
  local files, complete = deb.untar(function(bytes) return stream:read(bytes) end, wants)
  stream:close()
  if not complete then status.refuse('%s: damaged package; delete it and run again', path) end
  return files
end

return deb
