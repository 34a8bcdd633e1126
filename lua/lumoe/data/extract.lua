--- First half of preparation: from packages, or from the user's files, to aligned clean sentences.
--
-- A task is one package, one description list or one file of the user's. Its result is a directory work/NAME with
-- LANG.tsv (english TAB foreign), counts.json and perhaps the package's copyright file; it is made aside and renamed,
-- so a task is done or not begun, and a run that was killed goes on with the next one.
local apt = require 'lumoe.data.apt'
local clean = require 'lumoe.data.clean'
local deb = require 'lumoe.data.deb'
local json = require 'lumoe.data.json'
local own = require 'lumoe.data.own'
local shell = require 'lumoe.data.shell'
local sources = require 'lumoe.data.sources'
local status = require 'lumoe.status'
local lfs = require 'lfs'
local tablex = require 'pl.tablex'

local extract = {}

---@class lumoe.data.Task
---@field name string       of its directory; tasks are merged in the order of their names
---@field source string     third column of the data files
---@field version string    of the package or file: another one makes the task anew
---@field reader string?    module under lumoe.data.readers
---@field paths string[]?   packages or lists to read
---@field english_paths string[]?  those with the English side, where it is apart
---@field lists boolean?    paths are apt's lists, not packages
---@field package string?
---@field licence string?   what to say where the package says nothing
---@field own lumoe.data.OwnFile?  the user's file instead of all that
---@field split string?     'test' or 'valid' where the user's file is one

-- One task for each package or list that the sources have for these languages, each package once.
local function wanted_tasks(langs, source_list)
  local tasks = {}
  for rank, source in ipairs(source_list) do
    local seen = {}
    for _, lang in ipairs(langs) do
      local names = source.lists and { 'Translation-' .. sources.list_code(lang) } or source.packages(lang)
      for _, package in ipairs(names) do
        if not seen[package] then
          seen[package] = true
          tasks[#tasks + 1] = {
            name = ('%02d-%s'):format(rank, package), source = source.name, reader = source.reader, package = package,
            english = source.english, lists = source.lists, licence = source.licence,
          }
        end
      end
    end
  end
  return tasks
end

local function list_code(task) return task.package:match('^Translation%-(.*)') end

--- Fetches what the languages need and returns the tasks that this release has packages for.
-- Fills `packages`, `fetched_bytes` and `skipped` of the manifest. Raises where there is no apt.
---@param options { langs: string[], sources: string, cache: string, report: function }
---@param manifest table
---@return lumoe.data.Task[]
function extract.from_packages(options, manifest)
  local missing = apt.missing()
  if missing then
    status.refuse('no %s here: the texts come from Debian packages. On another system give your own texts: '
      .. '`--data DIR` of the recipe and of recipes/prepare.lua', missing)
  end
  local tasks = wanted_tasks(options.langs, sources.named(options.sources))
  local names, listed, list_codes = {}, {}, { 'en' }
  local function need(name)
    if not listed[name] then
      listed[name] = true
      names[#names + 1] = name
    end
  end
  for _, task in ipairs(tasks) do
    if task.lists then list_codes[#list_codes + 1] = list_code(task) else need(task.package) end
    for _, name in ipairs(task.english or {}) do need(name) end
  end

  local cache = apt.open(options.cache, options.report)
  local found = cache:packages(names)
  local lists, lists_version = cache:translations(list_codes)
  manifest.fetched_bytes = cache.fetched
  for name, package in pairs(found) do manifest.packages[name] = package.version end
  manifest.packages['description-lists'] = lists_version

  local ready = {}
  for _, task in ipairs(tasks) do
    local package, english = found[task.package], task.english and {}
    for _, name in ipairs(task.english or {}) do
      if found[name] then english[#english + 1] = found[name].path end
    end
    if task.lists then
      task.paths, task.english_paths = lists[list_code(task)], lists.en
      task.version = lists_version
    elseif package and (not english or #english > 0) then
      task.paths, task.english_paths = { package.path }, english
      task.version = package.version
    end
    if task.paths then ready[#ready + 1] = task else manifest.skipped[task.package] = 'not in this release' end
  end
  return ready
end

--- The tasks for a directory of the user's own texts. Without `langs`, sets options.langs to the languages found.
---@param options { from: string, langs: string[]?, report: function }
---@param manifest table
---@return lumoe.data.Task[]
---@return string[] inputs  names, sizes and times of the files
function extract.from_own(options, manifest)
  local files, ignored = own.find(options.from)
  for _, name in ipairs(ignored) do manifest.skipped[name] = 'not a parallel text' end
  local langs, wanted = {}, options.langs and tablex.makeset(options.langs)
  local tasks, inputs = {}, {}
  for i, file in ipairs(files) do
    local name = file.path:match('[^/]+$')
    if wanted and not wanted[file.lang] then
      manifest.skipped[name] = 'language not asked for'
    else
      if not tablex.find(langs, file.lang) then langs[#langs + 1] = file.lang end
      local version = {}
      for _, path in ipairs { file.path, file.english } do
        version[#version + 1] = ('%s %d %d'):format(path:match('[^/]+$'), lfs.attributes(path, 'size'),
          lfs.attributes(path, 'modification'))
      end
      inputs[#inputs + 1] = table.concat(version, ', ')
      tasks[#tasks + 1] = {
        name = ('%04d-%s'):format(i, name), source = name:gsub('%.gz$', ''), version = inputs[#inputs], own = file,
        split = file.split,
      }
    end
  end
  table.sort(langs)
  options.langs = options.langs or langs
  return tasks, inputs
end

-- The files that a reader wants, out of packages or lists; copyright files come along.
local function load_files(task, reader, paths, langs)
  local files = {}
  for _, path in ipairs(paths) do
    if task.lists then
      files[apt.list_name(path)] = apt.read_list(path)
    else
      tablex.update(files, deb.read(path, function(name)
        return reader.wants(name, langs) or name:find('^usr/share/doc/[^/]+/copyright$') ~= nil
      end))
    end
  end
  local copyright = {}
  for path, content in pairs(files) do
    if path:find('^usr/share/doc/[^/]+/copyright$') then
      copyright[#copyright + 1] = content
      files[path] = nil
    end
  end
  table.sort(copyright)
  return files, table.concat(copyright, '\n')
end

local english_cache = {} -- of this process: the English side that it read last; tasks come sorted by source

local function english_side(task, reader, langs)
  if not task.english_paths then return nil end
  if english_cache.source ~= task.source then
    english_cache = { source = task.source, side = reader.english((load_files(task, reader, task.english_paths, langs))) }
  end
  return english_cache.side
end

-- Writers of LANG.tsv in a directory, opened when first used.
local function outputs_in(dir)
  local files, counts, outputs = {}, {}, {}
  function outputs.count(lang, what, n)
    counts[lang] = counts[lang] or { kept = 0 }
    counts[lang][what] = (counts[lang][what] or 0) + (n or 1)
  end
  function outputs.keep(lang, english, foreign)
    files[lang] = files[lang] or assert(io.open(('%s/%s.tsv'):format(dir, lang), 'wb'))
    assert(files[lang]:write(english, '\t', foreign, '\n'))
    outputs.count(lang, 'kept')
  end
  function outputs.close()
    for _, file in pairs(files) do assert(file:close()) end
    shell.write(dir .. '/counts.json', json.encode(counts))
  end
  return outputs
end

local function run_own(task, outputs, dir)
  local lang = task.own.lang
  local problems = own.read(task.own, function(english, foreign) outputs.keep(lang, english, foreign) end)
  for kind, n in pairs(problems.counts) do outputs.count(lang, kind, n) end
  shell.write(dir .. '/problems.json', json.encode(problems.shown))
end

local function run_reader(options, task, outputs, dir)
  local reader, langs = require('lumoe.data.readers.' .. task.reader), tablex.makeset(options.langs)
  local files, copyright = load_files(task, reader, task.paths, langs)
  if copyright ~= '' then shell.write(dir .. '/copyright', copyright) end
  local lang
  local function keep(english, foreign) outputs.keep(lang, english, foreign) end
  local function reject(reason) outputs.count(lang, reason) end
  reader.read {
    files = files, langs = langs, english = english_side(task, reader, langs),
    emit = function(of, english, foreign)
      lang = of
      if langs[lang] then clean.sentences(english, foreign, lang, keep, reject) end
    end,
  }
end

--- The directory of a task's result.
function extract.dir(options, task) return ('%s/work/%s'):format(options.dir, task.name) end

--- Does one task, unless an earlier run has.
---@param options { dir: string, langs: string[] }
---@param task lumoe.data.Task
function extract.run(options, task)
  local dir = extract.dir(options, task)
  if shell.read(dir .. '/version') == task.version then return end
  local aside = dir .. '.part'
  shell.remove(aside)
  shell.mkdir(aside)
  local outputs = outputs_in(aside)
  if task.own then run_own(task, outputs, aside) else run_reader(options, task, outputs, aside) end
  outputs.close()
  shell.write(aside .. '/version', task.version)
  shell.remove(dir)
  assert(os.rename(aside, dir))
end

return extract
