--- Packages and description translations, through the machine's own apt: any user, nothing installed, system state
-- untouched. `apt-get download` fetches packages into a cache directory; `apt-get update` with a private state
-- directory fetches apt's own translated package descriptions (Translation-de, …). apt verifies signatures and hashes,
-- so what is in the cache is what Debian signed.
local lfs = require 'lfs'
local shell = require 'lumoe.data.shell'
local split = require 'lumoe.data.split'
local status = require 'lumoe.status'

local apt = {}

---@class lumoe.data.Apt
---@field dir string       the cache: *.deb, lists/
---@field report fun(text: string)  progress, at most one short line each call
---@field fetched integer  bytes fetched in this run
local Apt = {}
Apt.__index = Apt

--- Why there is no usable apt here, or nil.
---@return string?
function apt.missing()
  for _, program in ipairs { 'apt-get', 'apt-cache', 'dpkg-deb' } do
    if not shell.has(program) then return program end
  end
end

--- The cache directory that all data sets of a user share: $LUMOE_CACHE, $XDG_CACHE_HOME/lumoe or ~/.cache/lumoe.
---@return string
function apt.cache_dir()
  local base = os.getenv('LUMOE_CACHE')
  if base then return base end
  base = os.getenv('XDG_CACHE_HOME') or ((os.getenv('HOME') or '.') .. '/.cache')
  return base .. '/lumoe'
end

-- A configuration read after the system's own (-c), whose lists of values it must therefore clear.
-- `lists` nil leaves the system's package lists in use.
function Apt:configuration(name, lists, langs, with_packages)
  local quoted = {}
  for i, lang in ipairs(langs) do quoted[i] = ('"%s";'):format(lang) end
  local lines = {
    'APT::Sandbox::User "root";', 'Debug::NoLocking "true";', 'Acquire::Retries "3";', ('Dir::Cache "%s/apt/";'):format(self.dir),
  }
  if lists then
    shell.mkdir(lists .. '/partial')
    lines[#lines + 1] = ('Dir::State::lists "%s/";'):format(lists)
    lines[#lines + 1] = '#clear Acquire::Languages;'
    lines[#lines + 1] = ('Acquire::Languages { %s };'):format(table.concat(quoted, ' '))
    for _, target in ipairs { 'deb::Contents-deb', 'deb::DEP-11', 'deb::DEP-11-icons', 'deb::CNF', 'deb-src::Sources' } do
      lines[#lines + 1] = ('Acquire::IndexTargets::%s::DefaultEnabled "false";'):format(target)
    end
    lines[#lines + 1] = ('Acquire::IndexTargets::deb::Packages::DefaultEnabled "%s";'):format(tostring(with_packages))
  end
  shell.mkdir(self.dir .. '/apt/archives/partial')
  local path = ('%s/apt/%s.conf'):format(self.dir, name)
  shell.write(path, table.concat(lines, '\n') .. '\n')
  return path
end

-- Runs apt-get under a configuration with its progress (status lines on descriptor 3) reported; returns exit code and
-- messages.
function Apt:run(configuration, what, arguments, dir)
  local messages, fetched = {}, 0
  local command = ('cd %s && LC_ALL=C apt-get -q -c %s -o APT::Status-Fd=3 %s 3>&1 2>&1')
    :format(shell.quote(dir), shell.quote(configuration), arguments)
  local code = shell.lines(command, function(line)
    local percent = line:match('^dlstatus:[^:]*:([%d%.]+):')
    if percent then return self.report(('fetching %s %d%%'):format(what, percent)) end
    local number, unit = line:match('^Fetched ([%d%.,]+) ([kMG]?)B')
    if number then
      fetched = tonumber((number:gsub(',', ''))) * ({ [''] = 1, k = 1e3, M = 1e6, G = 1e9 })[unit]
    elseif line:find('^[EW]:') or line:find('^Err') then
      messages[#messages + 1] = line
    end
  end)
  return code, table.concat(messages, '\n'), fetched
end

-- Name -> { version, size, file } of those packages that the lists know.
local function candidates(names, configuration)
  local found = {}
  local command = 'LC_ALL=C apt-cache -c %s show --no-all-versions %s 2>/dev/null'
  local _, output = shell.capture(command:format(shell.quote(configuration), shell.join(names)))
  for stanza in (output .. '\n\n'):gmatch('(.-)\n\n') do
    local name = ('\n' .. stanza):match('\nPackage: (%S+)')
    local version = ('\n' .. stanza):match('\nVersion: (%S+)')
    local size = ('\n' .. stanza):match('\nSize: (%d+)')
    local arch = ('\n' .. stanza):match('\nArchitecture: (%S+)')
    if name and size and not found[name] then
      local file = ('%s_%s_%s.deb'):format(name, version:gsub(':', '%%3a'), arch) -- as apt names it
      found[name] = { version = version, size = tonumber(size), file = file }
    end
  end
  return found
end

-- What is not yet in the cache, in apt-get's own words. `partial` keeps unfinished files away from finished ones.
function Apt:download(names, configuration, found)
  local partial = self.dir .. '/partial'
  shell.mkdir(partial)
  local wanted = {}
  for _, name in ipairs(names) do
    local candidate = found[name]
    if lfs.attributes(self.dir .. '/' .. candidate.file, 'size') ~= candidate.size then
      wanted[#wanted + 1] = ('%s=%s'):format(name, candidate.version)
    end
  end
  -- a few at a time: a run that is killed keeps what it had
  for first = 1, #wanted, 8 do
    local batch = { unpack(wanted, first, math.min(first + 7, #wanted)) }
    local what = #wanted > 8 and ('packages %d-%d of %d'):format(first, first + #batch - 1, #wanted) or ('%d packages'):format(#wanted)
    local code, messages, fetched = self:run(configuration, what, 'download ' .. shell.join(batch), partial)
    if code ~= 0 then return false, messages end
    self.fetched = self.fetched + fetched
    for _, word in ipairs(batch) do
      local candidate = found[word:match('^[^=]+')]
      assert(os.rename(partial .. '/' .. candidate.file, self.dir .. '/' .. candidate.file))
    end
  end
  return true
end

--- Fetches packages that are not yet in the cache.
-- Uses the system's package lists; where these are missing, do not know a package or are too old for the mirror,
-- fetches its own.
---@param names string[]
---@return table<string, { path: string, version: string, size: integer }>  those that exist in this release
function Apt:packages(names)
  local configuration = self:configuration('system', nil, {})
  local found = candidates(names, configuration)
  local ok, messages = next(found) ~= nil, 'no package lists'
  local known = {}
  for _, name in ipairs(names) do
    if found[name] then known[#known + 1] = name end
  end
  if ok then ok, messages = self:download(known, configuration, found) end
  if not ok then
    configuration = self:configuration('packages', self.dir .. '/package-lists', { 'none' }, true)
    local code, why, fetched = self:run(configuration, 'package lists', 'update', self.dir)
    if code ~= 0 then status.refuse('apt-get update failed:\n%s\n%s', messages, why) end
    self.fetched = self.fetched + fetched
    found, known = candidates(names, configuration), {}
    for _, name in ipairs(names) do
      if found[name] then known[#known + 1] = name end
    end
    ok, messages = self:download(known, configuration, found)
    if not ok then status.refuse('apt-get download failed:\n%s', messages) end
  end
  local packages = {}
  for _, name in ipairs(known) do
    local candidate = found[name]
    packages[name] = { path = self.dir .. '/' .. candidate.file, version = candidate.version, size = candidate.size }
  end
  return packages
end

--- Fetches apt's description translations (DDTP) and English; each list once, then kept.
---@param langs string[]  apt's codes, such as pt_BR or zh_CN; those that the mirror lacks are missing in the result
---@return table<string, string[]> lists  code -> list files, sorted (one for each suite)
---@return string version                 what identifies this state of the lists
function Apt:translations(langs)
  local sorted = { unpack(langs) }
  table.sort(sorted)
  local lists = self.dir .. '/lists-' .. table.concat(sorted, '-')
  if #sorted > 12 then lists = ('%s/lists-%d-%d'):format(self.dir, #sorted, split.hash(table.concat(sorted, '-'))) end
  local configuration = self:configuration('translations', lists, langs, false)
  local stamp = lists .. '/complete'
  if not shell.read(stamp) then
    local code, messages, fetched = self:run(configuration, 'description translations', 'update', self.dir)
    if code ~= 0 then status.refuse('apt-get update failed for the description translations:\n%s', messages) end
    self.fetched = self.fetched + fetched
    shell.write(stamp, '')
  end
  local found, dates = {}, {}
  for name in lfs.dir(lists) do
    local code = name:match('_i18n_Translation%-([%w_%%]+)')
    if code then
      code = code:gsub('%%5[fF]', '_')
      found[code] = found[code] or {}
      table.insert(found[code], lists .. '/' .. name)
    elseif name:find('InRelease$') then
      dates[#dates + 1] = (shell.read(lists .. '/' .. name):match('\nDate: ([^\n]*)'))
    end
  end
  for _, files in pairs(found) do table.sort(files) end
  table.sort(dates)
  return found, table.concat(dates, '; ')
end

--- A list file's name without directory and compression: …_i18n_Translation-pt_BR.
function apt.list_name(path) return (path:match('[^/]+$'):gsub('%.[lgxbz][z4s][%a%d]*$', ''):gsub('%%5[fF]', '_')) end

--- The text of a list file, whatever apt compressed it with.
---@param path string
---@return string
function apt.read_list(path)
  local pipe = assert(io.popen('/usr/lib/apt/apt-helper cat-file ' .. shell.quote(path), 'r'))
  local content = pipe:read('*a')
  pipe:close()
  if content == '' and lfs.attributes(path, 'size') > 64 then status.refuse('%s: apt-helper could not read it', path) end
  return content
end

--- Opens (creates) the cache.
---@param dir string
---@param report fun(text: string)
---@return lumoe.data.Apt
function apt.open(dir, report)
  shell.mkdir(dir)
  return setmetatable({ dir = dir, report = report, fetched = 0 }, Apt)
end

return apt
