--- Files in a zip archive held in memory (Mozilla's language packs are such).
local zlib = require 'lumoe.data.zlib'

local zip = {}

local function number(s, at, bytes)
  local value = 0
  for i = bytes - 1, 0, -1 do value = value * 256 + s:byte(at + i) end
  return value
end

--- The wanted files, stored or deflated. Raises for what is no zip archive.
---@param archive string
---@param wants fun(name: string): boolean
---@return table<string, string>
function zip.read(archive, wants)
  -- the end record is the last 22 bytes, and a comment that we look for it before
  local ending
  for at = #archive - 21, math.max(1, #archive - 65600), -1 do
    if archive:sub(at, at + 3) == 'PK\5\6' then
      ending = at
      break
    end
  end
  if not ending then error('not a zip archive', 0) end
  local files, count, at = {}, number(archive, ending + 10, 2), number(archive, ending + 16, 4) + 1
  for _ = 1, count do
    if archive:sub(at, at + 3) ~= 'PK\1\2' then error('damaged zip archive', 0) end
    local method, packed = number(archive, at + 10, 2), number(archive, at + 20, 4)
    local name_size, extra, comment = number(archive, at + 28, 2), number(archive, at + 30, 2), number(archive, at + 32, 2)
    local name, header = archive:sub(at + 46, at + 45 + name_size), number(archive, at + 42, 4) + 1
    if wants(name) then
      local data = header + 30 + number(archive, header + 26, 2) + number(archive, header + 28, 2)
      local content = archive:sub(data, data + packed - 1)
      files[name] = method == 8 and assert(zlib.inflate(content, 'raw')) or content
    end
    at = at + 46 + name_size + extra + comment
  end
  return files
end

return zip
