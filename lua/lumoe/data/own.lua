--- The user's own parallel texts: a directory of TSV files or of aligned plain files, gzip or not.
--
--   de.tsv  my.de.tsv  en-de.tsv     English TAB German [TAB anything]
--   de-en.tsv  my_de_en.tsv          German TAB English
--   news.en + news.de (+ news.fr)    aligned by line
--   …, each also with .gz
--
-- A file whose name begins with test, valid or dev is used as that split, whole and in its order, and its English
-- sentences are kept out of training in every language. Without such files the split is by the hash of the English
-- sentence, as everywhere. A line that is not UTF-8, lacks a column or has an empty side is counted, reported with file
-- and line, and skipped.
local lfs = require 'lfs'
local languages = require 'lumoe.data.languages'
local status = require 'lumoe.status'
local text = require 'lumoe.data.text'
local zlib = require 'lumoe.data.zlib'

local own = {}

-- How many problems of a file are reported in words; all are counted.
local SHOWN = 5

---@class lumoe.data.OwnFile
---@field lang string
---@field path string            TSV, or the foreign side
---@field english string?        path of the English side of an aligned pair
---@field english_column integer?  1 or 2, for TSV
---@field split 'test'|'valid'|nil

local function split_of(name)
  return name:find('^test') and 'test' or (name:find('^valid') or name:find('^dev')) and 'valid' or nil
end

-- The language and English column that a TSV file's name says: …de.tsv, …en-de.tsv, …de-en.tsv.
local function tsv_language(stem)
  local token = stem:match('([^%.]+)$')
  local first, second = token:match('^([%a_]+)%-([%a_]+)$')
  if not first then first, second = token:match('_(%a%a%a?)_(%a%a%a?)$') end
  first, second = first and languages.of_locale(first), second and languages.of_locale(second)
  if first == 'en' and second and second ~= 'en' then return second, 1 end
  if second == 'en' and first then return first, 2 end
  local lang = languages.of_locale(token)
  if lang and lang ~= 'en' then return lang, 1 end
end

--- The parallel files of a directory, sorted by name; or the one TSV file given. Raises where there are none.
---@param dir string
---@return lumoe.data.OwnFile[]
---@return string[] ignored  names of files that are neither
function own.find(dir)
  local names, present = {}, {}
  local function add(name)
    names[#names + 1] = name
    present[name:gsub('%.gz$', '')] = name
  end
  local mode = lfs.attributes(dir, 'mode')
  if mode == 'file' then
    local file = dir
    dir = file:match('^(.*)/[^/]*$') or '.'
    add(file:match('[^/]*$'))
  elseif mode == 'directory' then
    for name in lfs.dir(dir) do
      if lfs.attributes(dir .. '/' .. name, 'mode') == 'file' then add(name) end
    end
  else
    status.refuse('%s: no such directory', dir)
  end
  table.sort(names)
  local files, ignored = {}, {}
  for _, name in ipairs(names) do
    local plain = name:gsub('%.gz$', '')
    local stem, extension = plain:match('^(.+)%.([^%.]+)$')
    local file
    if extension == 'tsv' then
      local lang, column = tsv_language(stem)
      if lang then file = { lang = lang, path = dir .. '/' .. name, english_column = column } end
    elseif stem then
      local lang, english = languages.of_locale(extension), present[stem .. '.en']
      if lang and lang ~= 'en' and english then
        file = { lang = lang, path = dir .. '/' .. name, english = dir .. '/' .. english }
      end
    end
    if file then
      file.split = split_of(name)
      files[#files + 1] = file
    elseif extension ~= 'en' then
      ignored[#ignored + 1] = name
    end
  end
  if #files == 0 then
    status.refuse('%s: no parallel texts there; give TSV files (de.tsv: English TAB German) or aligned files (news.en and '
      .. 'news.de), plain or .gz', dir)
  end
  return files, ignored
end

-- Counts what is wrong, and words the first few of each file.
local function problem_list(file)
  local problems = { counts = {}, shown = {} }
  function problems.add(kind, path, line, format, ...)
    problems.counts[kind] = (problems.counts[kind] or 0) + 1
    if #problems.shown < SHOWN then
      problems.shown[#problems.shown + 1] = ('%s:%d: %s'):format(path:match('[^/]+$'), line, format:format(...))
    end
  end
  problems.file = file
  return problems
end

-- Calls visit(line, english, foreign, english_path) for each line that has both sides.
local function tsv_lines(file, problems, visit)
  local number = 0
  for line in zlib.lines(file.path) do
    number = number + 1
    local first, second = line:match('^([^\t]*)\t([^\t]*)')
    if not first then
      problems.add('columns', file.path, number, 'no tab; wanted two columns')
    elseif file.english_column == 1 then
      visit(number, first, second)
    else
      visit(number, second, first)
    end
  end
end

local function aligned_lines(file, problems, visit)
  local english, foreign, number = zlib.lines(file.english), zlib.lines(file.path), 0
  while true do
    local e, f = english(), foreign()
    if not (e and f) then
      local longer, shorter, more = e and file.english or file.path, e and file.path or file.english, e and english or foreign
      local extra = (e or f) and 1 or 0
      while extra > 0 and more() do extra = extra + 1 end
      if extra > 0 then
        problems.add('unequal', longer, number + 1, '%d lines more than %s', extra, shorter:match('[^/]+$'))
        problems.counts.unequal = extra
      end
      return
    end
    number = number + 1
    visit(number, e, f)
  end
end

--- Reads one file (or aligned pair).
---@param file lumoe.data.OwnFile
---@param emit fun(english: string, foreign: string)
---@return { counts: table<string, integer>, shown: string[] } problems
function own.read(file, emit)
  local problems = problem_list(file)
  local english_path = file.english or file.path
  local function visit(number, english, foreign)
    local bad_english, bad_foreign = text.invalid_utf8(english), text.invalid_utf8(foreign)
    if bad_english then
      problems.add('utf8', english_path, number, 'not UTF-8: byte 0x%02X', english:byte(bad_english))
    elseif bad_foreign then
      problems.add('utf8', file.path, number, 'not UTF-8: byte 0x%02X', foreign:byte(bad_foreign))
    else
      english, foreign = text.squeeze(english), text.squeeze(foreign)
      if english == '' then
        problems.add('empty', english_path, number, 'the English side is empty')
      elseif foreign == '' then
        problems.add('empty', file.path, number, 'the %s side is empty', file.lang)
      else
        emit(english, foreign)
      end
    end
  end
  local read = file.english and aligned_lines or tsv_lines
  read(file, problems, visit)
  return problems
end

return own
