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
-- Everything before the manifest goes to dir/work; a run that was killed goes on where it stopped.
local tablex = require 'pl.tablex'
local apt = require 'lumoe.data.apt'
local check = require 'lumoe.options'
local extract = require 'lumoe.data.extract'
local json = require 'lumoe.data.json'
local languages = require 'lumoe.data.languages'
local merge = require 'lumoe.data.merge'
local shell = require 'lumoe.data.shell'
local status = require 'lumoe.status'
local terminal = require 'lumoe.log.terminal'
local workers = require 'lumoe.data.workers'

local prepare = {}

--- Part of every result; raised when the same packages would give other pairs.
prepare.VERSION = 1

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

-- Does `work` for every item, on options.jobs processes; returns the results in the items' order.
local function stage(options, what, items, work)
  local done, results = 0, {}
  options.report(('%s 0/%d'):format(what, #items))
  workers.run {
    jobs = options.jobs, tasks = #items,
    work = function(i) return work(items[i]) or {} end,
    done = function(i, result)
      done, results[i] = done + 1, result
      options.report(('%s %d/%d'):format(what, done, #items))
    end,
  }
  return results
end

-- Task directories belong to one plan; under another plan (languages, sources, version) they are made anew.
local function open_work(options)
  local work = options.dir .. '/work'
  local plan = json.encode {
    version = prepare.VERSION, langs = options.langs, sources = options.sources, from = options.from,
  }
  if shell.read(work .. '/plan.json') ~= plan then
    shell.remove(work)
    shell.mkdir(work)
    shell.write(work .. '/plan.json', plan)
  end
end

-- A finished directory for the same request (and the same files of the user's) is used as it is.
local function finished(options, inputs)
  local content = shell.read(options.dir .. '/manifest.json')
  local ok, manifest = pcall(json.decode, content or '')
  if not ok or manifest.version ~= prepare.VERSION then return nil end
  if manifest.from ~= options.from or manifest.sources ~= options.sources then return nil end
  if not tablex.deepcompare(manifest.inputs, inputs) then return nil end
  if not tablex.deepcompare(manifest.langs, options.langs) then return nil end
  return manifest
end

-- "columns 1, empty 2"
local function counts_text(counts)
  local words = {}
  for reason, count in tablex.sort(counts) do words[#words + 1] = ('%s %d'):format(reason, count) end
  return table.concat(words, ', ')
end

-- Sums what was kept and why the rest was not, and gathers the problems of the user's files.
local function count_cleaned(options, tasks, manifest)
  manifest.cleaned, manifest.problems = {}, {}
  for _, task in ipairs(tasks) do
    local dir = extract.dir(options, task)
    for lang, reasons in pairs(json.decode(assert(shell.read(dir .. '/counts.json')))) do
      local total = manifest.cleaned[lang] or {}
      manifest.cleaned[lang] = total
      for reason, count in pairs(reasons) do total[reason] = (total[reason] or 0) + count end
      if task.own then
        local skipped = tablex.copy(reasons)
        skipped.kept = nil
        if next(skipped) then manifest.skipped[task.source] = skipped end
      end
    end
    for _, line in ipairs(json.decode(shell.read(dir .. '/problems.json') or '[]')) do
      table.insert(manifest.problems, line)
      options.report('skipped ' .. line, true)
    end
    local skipped = manifest.skipped[task.source]
    if task.own and skipped then options.report(('skipped of %s in all: %s'):format(task.source, counts_text(skipped)), true) end
  end
end

local function write_licences(options, tasks)
  shell.mkdir(options.dir .. '/licences')
  local parts = {}
  for _, task in ipairs(tasks) do
    if task.package then
      local copyright = shell.read(extract.dir(options, task) .. '/copyright') or task.licence
        or 'The package has no copyright file of its own; see the package that its documentation directory links to.\n'
      parts[task.source] = parts[task.source] or {}
      table.insert(parts[task.source], ('== %s %s ==\n\n%s'):format(task.package, task.version, copyright))
    end
  end
  for name, list in pairs(parts) do
    shell.write(('%s/licences/%s.txt'):format(options.dir, name), table.concat(list, '\n'))
  end
end

local RUN = {
  langs = 'any?', dir = 'string?', from = 'string?', sources = 'string?', jobs = 'number?', cache = 'string?',
  report = 'function?', force = 'boolean?',
}

--- The default output directory of a list of languages.
---@param langs string[]
---@return string
function prepare.default_dir(langs)
  local name = table.concat(langs, '-')
  return 'data/' .. (#name <= 64 and name or #langs .. '-languages')
end

---@class lumoe.data.PrepareOptions
---@field langs string[]|string?  languages beside English, or a preset ('4', '8', '50'); default 4, with `from` those found
---@field dir string?            output directory; default data/<langs joined by ->, with `from` data/own
---@field from string?           a directory of the user's own texts instead of packages (see own.lua)
---@field sources string?        'small' or 'all'; default small up to 8 languages, else all
---@field jobs integer?          processes; default 2
---@field cache string?          where packages are kept; default $XDG_CACHE_HOME/lumoe or ~/.cache/lumoe
---@field report fun(text: string, final: boolean?)?  progress; default a line on standard error
---@field force boolean?         prepare anew even if the directory is complete

-- The options with their defaults filled in.
local function with_defaults(given)
  local options = tablex.copy(check.check('prepare.run', given, RUN))
  if options.langs or not options.from then options.langs = languages.parse(options.langs or '4') end
  options.dir = options.dir or options.from and 'data/own' or prepare.default_dir(options.langs)
  if not options.from then
    languages.check_known(options.langs)
    options.sources = options.sources or (#options.langs <= 8 and 'small' or 'all')
  end
  options.jobs = options.jobs or 2
  options.cache = options.cache or apt.cache_dir()
  options.report = options.report or reporter()
  return options
end

--- Prepares a data set, or finds it complete. Raises with a sentence that says what to do.
---@param given lumoe.data.PrepareOptions
---@return table manifest  { version, langs, splits = { lang = { source = { train, valid, test, … } } }, novel, packages,
---  fetched_bytes, skipped, problems, cleaned }
function prepare.run(given)
  local options = with_defaults(given)
  local manifest, tasks = { version = prepare.VERSION, packages = {}, skipped = {}, fetched_bytes = 0 }, nil
  if options.from then tasks, manifest.inputs = extract.from_own(options, manifest) end
  local done = not options.force and finished(options, manifest.inputs)
  if done then return done end

  tasks = tasks or extract.from_packages(options, manifest)
  local langs = options.langs
  manifest.langs, manifest.sources, manifest.from = langs, options.sources, options.from
  table.sort(tasks, function(a, b) return a.name < b.name end)
  shell.mkdir(options.dir)
  os.remove(options.dir .. '/manifest.json')
  open_work(options)

  stage(options, 'reading', tasks, function(task) extract.run(options, task) end)
  count_cleaned(options, tasks, manifest)
  local held = merge.held(options, tasks)
  local merged = stage(options, 'merging', langs, function(lang) return merge.language(options, tasks, lang, held) end)
  options.report('looking for near-duplicates of test sentences')
  local index = merge.index(options)
  local marked = stage(options, 'marking tests', langs, function(lang) return merge.mark(options, index, lang) end)

  manifest.splits, manifest.novel = {}, {}
  for i, lang in ipairs(langs) do
    manifest.splits[lang], manifest.novel[lang] = merged[i], marked[i]
    for _, name in ipairs(merge.SPLITS) do
      local from = ('%s/work/%s.%s.tsv'):format(options.dir, lang, name == 'test' and 'marked' or name)
      assert(os.rename(from, ('%s/%s.%s.tsv'):format(options.dir, name, lang)))
    end
    if not next(merged[i]) then
      local hint = options.sources == 'small' and ' in these sources; try --sources all' or ''
      options.report(('no pairs for %s%s'):format(lang, hint), true)
    end
  end
  if not next(tablex.filter(merged, function(of_source) return next(of_source) ~= nil end)) then
    status.refuse('no pairs of any language in %s', options.from or 'these sources')
  end
  write_licences(options, tasks)
  shell.write(options.dir .. '/manifest.json', json.encode(manifest))
  shell.remove(options.dir .. '/work')
  options.report('done: ' .. options.dir, true)
  return manifest
end

--- Counts of a language over all sources.
---@param manifest table
---@param lang string
---@return { train: integer, valid: integer, test: integer }
function prepare.counts(manifest, lang)
  local counts = { train = 0, valid = 0, test = 0 }
  for _, of_source in pairs(manifest.splits[lang]) do
    for name in pairs(counts) do counts[name] = counts[name] + of_source[name] end
  end
  return counts
end

--- A few lines that say what a manifest holds.
---@param manifest table
---@return string
function prepare.summary(manifest)
  local lines, train = {}, 0
  for _, lang in ipairs(manifest.langs) do
    local counts = prepare.counts(manifest, lang)
    train = train + counts.train
    lines[#lines + 1] = ('%-6s train %8d  valid %6d  test %6d (%d novel)')
      :format(lang, counts.train, counts.valid, counts.test, manifest.novel[lang].novel)
  end
  lines[#lines + 1] = ('%d training pairs; %.1f MB fetched'):format(train, manifest.fetched_bytes / 1e6)
  return table.concat(lines, '\n')
end

return prepare
