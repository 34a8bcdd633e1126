--- Where parallel text comes from: Debian packages and apt's lists, and the reader of each.
-- The order is the order of preference: of two translations of one English sentence the first stays. Prose before interface text.
local languages = require 'lumoe.data.languages'
local status = require 'lumoe.status'

local sources = {}

---@class lumoe.data.Source
---@field name string       third column of the data files, and name of the licence file
---@field reader string     module under lumoe.data.readers
---@field english string[]? packages that hold the English side, where it is apart
---@field lists boolean?    read from apt's description lists instead of packages
---@field licence string?   what to say where the package says nothing
---@field packages fun(lang: string): string[]?  packages with the other side (or with both)

local function words(list)
  local found = {}
  for word in list:gmatch('%S+') do found[#found + 1] = word end
  return found
end

-- Packages whose names end in the language; packages that hold all languages; both.
local function each_language(formats)
  return function(lang)
    local names = words(formats)
    for i, format in ipairs(names) do names[i] = format:format(languages.package_suffix(lang)) end
    return names
  end
end
local function shared(names)
  local list = words(names)
  return function() return list end
end
local function only(of, names)
  return function(lang) return lang == of and words(names) or {} end
end

local gnome_help = { name = 'gnome-help', reader = 'gnome_help', packages = shared 'gnome-user-docs evolution-common gnome-devel-docs' }
local libreoffice_help = {
  name = 'libreoffice-help', reader = 'libreoffice_help', english = { 'libreoffice-help-en-us' },
  packages = each_language 'libreoffice-help-%s',
}
local descriptions = {
  name = 'ddtp', reader = 'ddtp', lists = true,
  licence = [[
The translated package descriptions come from the Debian Description Translation Project
(https://www.debian.org/international/l10n/ddtp). apt's lists state no licence for them. A description is part of its
package and thus under that package's licence. Before you pass on these texts, or a model trained on them, look into it.
]],
}

-- Mozilla's packages name the country in some languages.
local mozilla_suffix = {
  es = 'es-es', pt = 'pt-pt', nb = 'nb-no', nn = 'nn-no', sv = 'sv-se', pa = 'pa-in', hi = 'hi-in', gu = 'gu-in', ga = 'ga-ie',
  hy = 'hy-am', ne = 'ne-np', fy = 'fy-nl',
}

-- Programs whose help is read too; their catalogues come with them.
local GNOME = [[
  evince-common gedit-common eog aisleriot orca seahorse totem-common gnome-terminal-data epiphany-browser-data
  gnome-system-monitor gthumb-data gnome-boxes gnote shotwell-common brasero-common file-roller cheese-common deja-dup gbrainy
  anjuta-common rhythmbox-data accerciser zenity-common meld gnome-dictionary iagno gnome-calculator simple-scan gucharmap
  gnome-robots baobab gnome-nibbles glade sound-juicer swell-foop gnome-mines tali gnome-sudoku four-in-a-row eom-common
  gnome-tetravex mate-system-monitor-common hitori gnome-chess lightsoff gnome-color-manager gnome-nettool ]]
local KDE = [[
  konqueror kio krusader kmail kate5-data kmymoney-common khelpcenter plasma-desktop-data plasma-workspace-data kwin-data
  calligraplan umbrello-data ]]
-- The English side of the translated man pages.
local COMMANDS = [[
  manpages manpages-dev coreutils util-linux mount bsdutils apt dpkg passwd login procps psmisc findutils tar grep sed gzip
  e2fsprogs systemd man-db openssh-client ]]
-- Catalogues alone, of those with the most sentences a megabyte.
local CATALOGUES = [[
  inkscape gimp-data vlc-l10n gnucash-common wordpress-l10n phpmyadmin libgtk-3-common krita-l10n audacity-data
  binutils-common gnome-control-center-data evolution-data-server-common git libglib2.0-data calligrasheets-data
  gcc-12-locales gramps digikam-data libvirt-l10n cinnamon-l10n pidgin-data gnumeric-common darktable util-linux-locales
  subversion filezilla-common network-manager kdevelop-l10n geany-common gnupg-l10n libc-l10n ktorrent-data
  gnome-software-common planner-data mate-terminal-common engrampa-common atril-common aptitude-common nautilus-data
  gnome-disk-utility mate-panel-common gnome-builder hexchat-common thunar-data korganizer synaptic libsane-common
  caja-common network-manager-gnome system-config-printer-common pluma-common e2fsprogs-l10n gnome-shell-common
  poedit-common konsole deluge-common xfce4-settings mate-control-center-common kdepim-runtime lokalize python3-django ]]

--- Three sources with prose and few packages: the default.
---@type lumoe.data.Source[]
sources.small = { gnome_help, libreoffice_help, descriptions }

--- Everything that has a reader: for many languages, since most of what is fetched serves all of them.
---@type lumoe.data.Source[]
sources.all = {
  { name = 'bible', reader = 'bible', english = { 'sword-text-kjv' }, packages = only('es', 'sword-text-sparv') },
  { name = 'games', reader = 'gettext_mo', packages = shared 'wesnoth-1.16-data freeciv-data tuxpaint-data' },
  {
    name = 'debian-docs', reader = 'debian_docs',
    english = words 'debian-reference-en debian-faq maint-guide developers-reference',
    packages = function(lang)
      local list = each_language 'debian-reference-%s debian-faq-%s maint-guide-%s developers-reference-%s' (lang)
      list[#list + 1], list[#list + 2] = 'debian-handbook', 'installation-guide-amd64'
      return list
    end,
  },
  gnome_help,
  {
    name = 'gnome-mate-help', reader = 'gnome_help',
    packages = shared('mate-user-guide ' .. GNOME),
  },
  {
    name = 'kde-help', reader = 'kde_help',
    packages = shared(KDE),
  },
  libreoffice_help,
  descriptions,
  {
    name = 'manpages', reader = 'manpages',
    english = words(COMMANDS),
    packages = each_language 'manpages-%s manpages-%s-dev',
  },
  { name = 'mediawiki', reader = 'mediawiki', packages = shared 'mediawiki' },
  {
    name = 'mozilla', reader = 'mozilla', english = words 'firefox-esr-l10n-en-gb thunderbird-l10n-en-gb',
    packages = function(lang)
      local suffix = mozilla_suffix[lang] or languages.package_suffix(lang)
      return { 'firefox-esr-l10n-' .. suffix, 'thunderbird-l10n-' .. suffix }
    end,
  },
  {
    name = 'applications', reader = 'gettext_mo',
    packages = shared(CATALOGUES .. 'evolution-common ' .. GNOME .. KDE .. COMMANDS),
  },
  { name = 'libreoffice-ui', reader = 'gettext_mo', packages = each_language 'libreoffice-l10n-%s libreoffice-l10n-%s-in' },
}

--- The sources of a set of that name; raises for an unknown one.
---@param name 'small'|'all'
---@return lumoe.data.Source[]
function sources.named(name)
  local set = sources[name]
  if type(set) ~= 'table' then status.refuse('sources: %q is none; give small or all', name) end
  return set
end

--- apt's code of a language in its description lists.
function sources.list_code(lang) return lang == 'zh' and 'zh_CN' or lang end

return sources
