--- Where parallel text comes from: Debian packages and apt's lists, and the reader of each.
-- The order is the order of preference: of two translations of one English sentence the first stays.
local languages = require 'lumoe.data.languages'

local sources = {}

---@class lumoe.data.Source
---@field name string       third column of the data files, and name of the licence file
---@field reader string     module under lumoe.data.readers
---@field english string?   the package that holds the English side, where it has its own
---@field lists boolean?   read from apt's description lists instead of packages
---@field licence string?  what to say where the package says nothing
---@field packages fun(lang: string): string[]?  packages with the other side (or with both)

local function each_language(format)
  return function(lang) return { (format:format(languages.package_suffix(lang))) } end
end
local function always(names)
  local list = {}
  for name in names:gmatch('%S+') do list[#list + 1] = name end
  return function() return list end
end

local ddtp_licence = [[
The translated package descriptions come from the Debian Description Translation Project
(https://www.debian.org/international/l10n/ddtp). apt's lists state no licence for them. A description is part of its
package and thus under that package's licence. Before you pass on these texts, or a model trained on them, look into it.
]]

--- Three sources with prose and few packages: the default.
---@type lumoe.data.Source[]
sources.small = {
  { name = 'gnome-help', reader = 'gnome_help', packages = always 'gnome-user-docs evolution-common gnome-devel-docs' },
  {
    name = 'libreoffice-help', reader = 'libreoffice_help', english = 'libreoffice-help-en-us',
    packages = each_language 'libreoffice-help-%s',
  },
  { name = 'ddtp', reader = 'ddtp', lists = true, licence = ddtp_licence },
}

--- The sources of a set of that name; raises for an unknown one.
---@param name 'small'|'all'
---@return lumoe.data.Source[]
function sources.named(name)
  local set = sources[name]
  if type(set) ~= 'table' then error(('sources: %q is none; give small or all'):format(name), 0) end
  return set
end

--- apt's code of a language in its description lists.
function sources.list_code(lang) return lang == 'zh' and 'zh_CN' or lang end

return sources
