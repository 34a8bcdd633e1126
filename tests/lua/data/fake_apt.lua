--- A stand-in for apt: real packages, built by dpkg-deb from given files, behind scripts named apt-get and apt-cache.
-- The specs need no network, and no package list of the machine's.
local directory = require 'tests.lua.data.directory'
local shell = require 'lumoe.data.shell'

local apt_cache = [[
#!/bin/sh
while [ $# -gt 0 ]; do
  case $1 in -c) shift;; show|--*) ;; *) cat "$FAKE_APT/stanzas/$1" 2>/dev/null && echo;; esac
  shift
done
]]

local apt_get = [[
#!/bin/sh
echo "$*" >> "$FAKE_APT/log"
while [ $# -gt 0 ]; do
  case $1 in
    -c) conf=$2; shift;;
    download|update) verb=$1;;
    *=*) wanted="$wanted $1";;
  esac
  shift
done
[ -e "$FAKE_APT/fail" ] && { echo "E: the mirror is on fire"; exit 100; }
if [ "$verb" = download ]; then
  for w in $wanted; do case $w in APT::*) ;; *) cp "$FAKE_APT/debs/${w%%=*}"_* .;; esac; done
  echo "Fetched 1,234 kB in 0s (1 B/s)"
else
  lists=$(sed -n 's/^Dir::State::lists "\(.*\)";/\1/p' "$conf")
  for code in $(sed -n 's/^Acquire::Languages {\(.*\)};/\1/p' "$conf" | tr -d '";'); do
    [ -e "$FAKE_APT/lists/$code" ] && cp "$FAKE_APT/lists/$code" "$lists/example.org_main_i18n_Translation-$code"
  done
  printf 'Origin: x\nDate: today\n' > "$lists/example.org_InRelease"
  echo "Fetched 2 kB in 0s (1 B/s)"
fi
]]

local fake_apt = {}

--- Makes the stand-in: { path = value for PATH, dir = … }.
---@param packages table<string, table<string, string>>  name -> path -> content
---@param lists table<string, string>                    code -> Translation list
function fake_apt.new(packages, lists)
  local dir = directory { ['bin/apt-get'] = apt_get, ['bin/apt-cache'] = apt_cache }
  os.execute(('chmod +x %s/bin/*'):format(dir))
  shell.mkdir(dir .. '/debs')
  shell.mkdir(dir .. '/stanzas')
  shell.mkdir(dir .. '/lists')
  for code, list in pairs(lists) do shell.write(dir .. '/lists/' .. code, list) end
  for name, files in pairs(packages) do
    local root = directory(files)
    shell.mkdir(root .. '/DEBIAN')
    shell.write(root .. '/DEBIAN/control',
      ('Package: %s\nVersion: 1:2\nArchitecture: all\nMaintainer: n <n@example.org>\nDescription: d\n'):format(name))
    local deb = ('%s/debs/%s_1%%3a2_all.deb'):format(dir, name)
    assert(shell.lines(('dpkg-deb -Zgzip -b %s %s >/dev/null 2>&1'):format(root, shell.quote(deb))) == 0)
    shell.remove(root)
    local size = #shell.read(deb)
    shell.write(dir .. '/stanzas/' .. name, ('Package: %s\nVersion: 1:2\nArchitecture: all\nSize: %d\n'):format(name, size))
  end
  return { dir = dir, path = dir .. '/bin:' .. os.getenv 'PATH' }
end

return fake_apt
