--- From nothing to training data: fetch, align, clean, split, mark near-duplicates.
--
--   local prepare = require 'lumoe.data.prepare'
--   local manifest = prepare.run { langs = { 'de', 'fr' }, dir = 'data/de-fr' }
--
-- What is left in `dir`, all UTF-8, one pair a line, no tab or line break inside a field:
--   train.LANG.tsv  valid.LANG.tsv   english TAB foreign TAB source
--   test.LANG.tsv                    … TAB Jaccard of the nearest training sentence of any language (novel: below 0.60)
--   licences/SOURCE.txt              what the packages say about copying
--   manifest.json                    versions, counts, bytes; written last, so a directory that has it is complete
--
-- Everything before the manifest goes to dir/work and is renamed when whole; a run that was killed goes on where it
-- stopped.
local lfs = require 'lfs'
local tablex = require 'pl.tablex'
local apt = require 'lumoe.data.apt'
local check = require 'lumoe.options'
local clean = require 'lumoe.data.clean'
local deb = require 'lumoe.data.deb'
local json = require 'lumoe.data.json'
local languages = require 'lumoe.data.languages'
local near_duplicates = require 'lumoe.data.near_duplicates'
local shell = require 'lumoe.data.shell'
local sources = require 'lumoe.data.sources'
local split = require 'lumoe.data.split'
local terminal = require 'lumoe.log.terminal'
local workers = require 'lumoe.data.workers'

local prepare = {}

--- Part of every result; raised when the same packages would give other pairs.
prepare.VERSION = 1

local SPLITS = { 'train', 'valid', 'test' }

-- A progress line: on a terminal it is rewritten in place, elsewhere a line every few seconds.
local function reporter()
  local redraws, begun, last = terminal.is(io.stderr), terminal.clock(), -math.huge
  return function(line, final)
    local now = terminal.clock()
    if not final and now - last < (redraws and 0.1 or 5) then return end
    last = now
    local shown = ('prepare: %s [%.0f s]'):format(line, now - begun)
    if redraws then shown = '\r' .. terminal.cut(shown, terminal.width(io.stderr) - 1) .. '\27[K' end
    io.stderr:write(shown, (final or not redraws) and '\n' or '')
    io.stderr:flush()
  end
end

local function set_of(list)
  local set = {}
  for _, item in ipairs(list) do set[item] = true end
  return set
end

local function read_lines(path)
  return coroutine.wrap(function()
    local file = assert(io.open(path, 'rb'))
    for line in file:lines() do coroutine.yield(line) end
    file:close()
  end)
end

-- 1. What to fetch and who reads it: one task for each package (or description list).
local function plan_tasks(options)
  local tasks, packages, wanted = {}, {}, {}
  local function want(name)
    if not wanted[name] then
      wanted[name] = true
      packages[#packages + 1] = name
    end
  end
  for rank, source in ipairs(sources.named(options.sources)) do
    local seen = {}
    if source.english then want(source.english) end
    for _, lang in ipairs(options.langs) do
      for _, package in ipairs(source.lists and { 'Translation-' .. sources.list_code(lang) } or source.packages(lang)) do
        if not seen[package] then
          seen[package] = true
          if not source.lists then want(package) end
          tasks[#tasks + 1] = { rank = rank, source = source, package = package }
        end
      end
    end
  end
  return tasks, packages
end

-- 2. Fetch. Tasks whose package this release does not have are dropped and said in `skipped`.
local function fetch(options, tasks, packages, manifest)
  local missing = apt.missing()
  if missing then
    error(('prepare: no %s here; the texts come from Debian packages. On another system give your own texts with --data DIR '
      .. '(recipes/prepare.lua: --from DIR)'):format(missing), 0)
  end
  local cache = apt.open(options.cache, options.report)
  local found = cache:packages(packages)
  local codes = { 'en' }
  for _, lang in ipairs(options.langs) do codes[#codes + 1] = sources.list_code(lang) end
  local lists, lists_version = cache:translations(codes)
  manifest.fetched_bytes = cache.fetched
  manifest.packages['description-lists'] = lists_version

  local ready = {}
  for _, task in ipairs(tasks) do
    local code = task.package:match('^Translation%-(.*)')
    local english = task.source.english
    if task.source.lists then
      task.paths, task.english_paths, task.version = lists[code], lists.en, lists_version
    elseif found[task.package] and (not english or found[english]) then
      task.paths, task.version = { found[task.package].path }, found[task.package].version
      task.english_paths = english and { found[english].path }
    end
    if task.paths then
      ready[#ready + 1] = task
    else
      manifest.skipped[task.package] = 'not in this release'
    end
  end
  for name, package in pairs(found) do manifest.packages[name] = package.version end
  return ready
end

-- The files that a reader wants, out of one package or list.
local function load_files(task, reader, paths, langs)
  if task.source.lists then
    local files = {}
    for _, path in ipairs(paths) do files[apt.list_name(path)] = apt.read_list(path) end
    return files
  end
  return deb.read(paths[1], function(path)
    return reader.wants(path, langs) or path:find('^usr/share/doc/[^/]+/copyright$') ~= nil
  end)
end

local english_cache = {} -- of this process: the English side of the source it read last

local function english_side(task, reader, langs)
  if not task.english_paths then return nil end
  if english_cache.source ~= task.source.name then
    local files = load_files(task, reader, task.english_paths, langs)
    for path in pairs(files) do
      if path:find('/copyright$') then files[path] = nil end
    end
    english_cache = { source = task.source.name, side = reader.english(files) }
  end
  return english_cache.side
end

-- 3. Extract: task directory with LANG.tsv of clean aligned sentences, the copyright file and counts.json.
local function extract(options, task)
  local dir = ('%s/work/%s'):format(options.dir, task.name)
  if shell.read(dir .. '/version') == task.version then return {} end -- done before this run was cut off
  local aside = dir .. '.part'
  shell.remove(aside)
  shell.mkdir(aside)
  local reader = require('lumoe.data.readers.' .. task.source.reader)
  local langs = set_of(options.langs)
  local files, licence = load_files(task, reader, task.paths, langs), {}
  for path, content in pairs(files) do
    if path:find('/copyright$') then
      licence[#licence + 1] = content
      files[path] = nil
    end
  end
  table.sort(licence)
  if #licence > 0 then shell.write(aside .. '/copyright', table.concat(licence, '\n')) end

  local outputs, counts = {}, {}
  local function emit(lang, english, foreign)
    if not langs[lang] then return end
    local output, count = outputs[lang], counts[lang]
    if not output then
      output, count = assert(io.open(('%s/%s.tsv'):format(aside, lang), 'wb')), { kept = 0 }
      outputs[lang], counts[lang] = output, count
    end
    clean.sentences(english, foreign, lang, function(e, f)
      count.kept = count.kept + 1
      assert(output:write(e, '\t', f, '\n'))
    end, function(reason) count[reason] = (count[reason] or 0) + 1 end)
  end
  reader.read { files = files, english = english_side(task, reader, langs), langs = langs, emit = emit }
  for _, output in pairs(outputs) do assert(output:close()) end
  shell.write(aside .. '/counts.json', json.encode(counts))
  shell.write(aside .. '/version', task.version)
  shell.remove(dir)
  assert(os.rename(aside, dir))
  return {}
end

-- 4. Merge one language: sources in order of preference, one translation for each English key, split by the key.
local function merge(options, tasks, lang)
  local base = ('%s/work/%s'):format(options.dir, lang)
  local seen, counts, outputs = {}, {}, {}
  for _, name in ipairs(SPLITS) do outputs[name] = assert(io.open(('%s.%s.tsv'):format(base, name), 'wb')) end
  local keys = assert(io.open(base .. '.keys', 'wb'))
  for _, task in ipairs(tasks) do
    local path = ('%s/work/%s/%s.tsv'):format(options.dir, task.name, lang)
    if lfs.attributes(path) then
      local source = task.source.name
      for line in read_lines(path) do
        local english = line:match('^[^\t]*')
        local key = split.key(english)
        local count = counts[source] or { train = 0, valid = 0, test = 0, duplicates = 0 }
        counts[source] = count
        if seen[key] then
          count.duplicates = count.duplicates + 1
        else
          seen[key] = true
          local part = split.of(key)
          count[part] = count[part] + 1
          assert(outputs[part]:write(line, '\t', source, '\n'))
          if part == 'train' then assert(keys:write(key, '\n')) end
        end
      end
    end
  end
  for _, output in pairs(outputs) do assert(output:close()) end
  assert(keys:close())
  return counts
end

-- 5. The distinct training keys of all languages, in order of appearance.
local function training_keys(options)
  local keys, seen = {}, {}
  for _, lang in ipairs(options.langs) do
    for key in read_lines(('%s/work/%s.keys'):format(options.dir, lang)) do
      if not seen[key] then
        seen[key] = true
        keys[#keys + 1] = key
      end
    end
  end
  return keys
end

-- Appends to each test line the Jaccard of its nearest training sentence.
local function mark_tests(options, index, lang)
  local base, nearest, novel, total = ('%s/work/%s'):format(options.dir, lang), {}, 0, 0
  local out = {}
  for line in read_lines(base .. '.test.tsv') do
    local key = split.key(line:match('^[^\t]*'))
    nearest[key] = nearest[key] or index:nearest(key)
    total = total + 1
    if nearest[key] < near_duplicates.THRESHOLD then novel = novel + 1 end
    -- cut, not rounded, to two decimals: what reads 0.60 is at least 0.6
    out[#out + 1] = ('%s\t%.2f\n'):format(line, math.floor(nearest[key] * 100 + 1e-9) / 100)
  end
  shell.write(base .. '.marked.tsv', table.concat(out))
  return { total = total, novel = novel }
end

local function write_licences(options, tasks)
  shell.mkdir(options.dir .. '/licences')
  local parts = {}
  for _, task in ipairs(tasks) do
    local name = task.source.name
    parts[name] = parts[name] or {}
    local copyright = shell.read(('%s/work/%s/copyright'):format(options.dir, task.name))
    local heading = ('== %s %s ==\n\n'):format(task.package, task.version or '')
    table.insert(parts[name], heading .. (copyright or task.source.licence or
      'The package has no copyright file of its own; see the package that its documentation directory links to.\n'))
  end
  for name, list in pairs(parts) do shell.write(('%s/licences/%s.txt'):format(options.dir, name), table.concat(list, '\n')) end
end

-- The task directories belong to one plan; under another plan (languages, sources, version) they are made anew.
local function open_work(options)
  local work = options.dir .. '/work'
  local plan = json.encode { version = prepare.VERSION, langs = options.langs, sources = options.sources, from = options.from }
  if shell.read(work .. '/plan.json') ~= plan then
    shell.remove(work)
    shell.mkdir(work)
    shell.write(work .. '/plan.json', plan)
  end
end

local function run_stage(options, what, items, work)
  local done, results = 0, {}
  workers.run {
    jobs = options.jobs, tasks = #items,
    work = function(i) return work(items[i]) end,
    done = function(i, result)
      done, results[i] = done + 1, result
      options.report(('%s %d/%d'):format(what, done, #items))
    end,
  }
  return results
end

-- A finished directory for the same request is used as it is.
local function finished(options)
  local content = shell.read(options.dir .. '/manifest.json')
  if not content then return nil end
  local ok, manifest = pcall(json.decode, content)
  if ok and manifest.version == prepare.VERSION and manifest.from == options.from and manifest.sources == options.sources
    and table.concat(manifest.langs, ',') == table.concat(options.langs, ',') then
    return manifest
  end
end

---@class lumoe.data.PrepareOptions
---@field langs string[]|string  languages beside English, or a preset ('4', '8', '50'); default 4
---@field dir string?            output directory; default data/<langs joined by ->
---@field from string?           a directory of the user's own texts instead of packages
---@field sources string?        'small' or 'all'; default small up to 8 languages, else all
---@field jobs integer?          processes; default 2
---@field cache string?          where packages are kept; default $XDG_CACHE_HOME/lumoe or ~/.cache/lumoe
---@field report fun(text: string, final: boolean?)?  progress; default a line on standard error
---@field force boolean?         prepare anew even if the directory is complete

local RUN = {
  langs = 'any?', dir = 'string?', from = 'string?', sources = 'string?', jobs = 'number?', cache = 'string?', report = 'function?',
  force = 'boolean?',
}

--- The default output directory of a list of languages.
---@param langs string[]
---@return string
function prepare.default_dir(langs)
  local name = table.concat(langs, '-')
  return 'data/' .. (#name <= 64 and name or #langs .. '-languages')
end

--- Prepares a data set, or finds it complete. Raises with a sentence that says what to do.
---@param given lumoe.data.PrepareOptions
---@return table manifest
function prepare.run(given)
  local options = tablex.copy(check.check('prepare.run', given, RUN))
  options.langs = languages.parse(options.langs or '4')
  options.sources = options.sources or (#options.langs <= 8 and 'small' or 'all')
  options.dir = options.dir or prepare.default_dir(options.langs)
  options.jobs = options.jobs or 2
  options.cache = options.cache or apt.cache_dir()
  options.report = options.report or reporter()
  local manifest = not options.force and finished(options)
  if manifest then return manifest end

  manifest = {
    version = prepare.VERSION, langs = options.langs, sources = options.sources, from = options.from,
    splits = {}, packages = {}, skipped = {}, fetched_bytes = 0,
  }
  shell.mkdir(options.dir)
  os.remove(options.dir .. '/manifest.json')
  open_work(options)
  local tasks, packages = plan_tasks(options)
  tasks = fetch(options, tasks, packages, manifest)
  for _, task in ipairs(tasks) do task.name = ('%02d-%s'):format(task.rank, task.package) end
  table.sort(tasks, function(a, b) return a.name < b.name end)
  run_stage(options, 'reading package', tasks, function(task) return extract(options, task) end)
  return prepare.finish(options, tasks, manifest)
end

--- The second half: merge, split, mark, write. `tasks` name directories of dir/work with LANG.tsv files.
function prepare.finish(options, tasks, manifest)
  local langs = options.langs
  local merged = run_stage(options, 'merging language', langs, function(lang) return merge(options, tasks, lang) end)
  for i, lang in ipairs(langs) do manifest.splits[lang] = merged[i] end

  options.report('looking for near-duplicates of test sentences')
  local index = near_duplicates.index(training_keys(options))
  local marked = run_stage(options, 'marking tests', langs, function(lang) return mark_tests(options, index, lang) end)
  manifest.novel = {}
  for i, lang in ipairs(langs) do manifest.novel[lang] = marked[i] end

  manifest.cleaned = {}
  for _, task in ipairs(tasks) do
    local counts = json.decode(assert(shell.read(('%s/work/%s/counts.json'):format(options.dir, task.name))))
    for lang, reasons in pairs(counts) do
      local total = manifest.cleaned[lang] or {}
      manifest.cleaned[lang] = total
      for reason, count in pairs(reasons) do total[reason] = (total[reason] or 0) + count end
    end
  end
  write_licences(options, tasks)
  for _, lang in ipairs(langs) do
    for _, name in ipairs(SPLITS) do
      local from = ('%s/work/%s.%s.tsv'):format(options.dir, lang, name == 'test' and 'marked' or name)
      assert(os.rename(from, ('%s/%s.%s.tsv'):format(options.dir, name, lang)))
    end
  end
  shell.write(options.dir .. '/manifest.json', json.encode(manifest))
  shell.remove(options.dir .. '/work')
  return manifest
end

--- A few lines that say what a manifest holds.
---@param manifest table
---@return string
function prepare.summary(manifest)
  local lines, train = {}, 0
  for _, lang in ipairs(manifest.langs) do
    local counts = { train = 0, valid = 0, test = 0 }
    for _, by_split in pairs(manifest.splits[lang]) do
      for name in pairs(counts) do counts[name] = counts[name] + by_split[name] end
    end
    train = train + counts.train
    lines[#lines + 1] = ('%-6s train %8d  valid %6d  test %6d (%d novel)'):format(lang, counts.train, counts.valid, counts.test,
      manifest.novel[lang].novel)
  end
  lines[#lines + 1] = ('%d training pairs; %.1f MB fetched'):format(train, manifest.fetched_bytes / 1e6)
  return table.concat(lines, '\n')
end

return prepare
