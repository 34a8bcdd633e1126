--- Where the code outside this package is that called into it: the place that errors about arguments name.

--- `file:line: `, or nothing where there is none. A fixed level would miss it after a tail call.
---@return string
local function position()
  for level = 3, 64 do
    local info = debug.getinfo(level, 'Sl')
    if not info then break end
    if info.currentline > 0 and not info.source:find('/lua/lumoe/', 1, true) then
      return ('%s:%d: '):format(info.short_src, info.currentline)
    end
  end
  return ''
end

--- The same of the line where a function of Lua begins.
---@param f function
---@return string
local function beginning(f)
  local info = debug.getinfo(f, 'S')
  return info.what == 'C' and '' or ('%s:%d: '):format(info.short_src, info.linedefined)
end

return { position = position, beginning = beginning }
