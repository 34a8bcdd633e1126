--- Translates what is typed, with a checkpoint of recipes/translate.lua.
--   ./lumoe recipes/interactive.lua runs/translate
--   > Das Dokument wurde gespeichert.
-- `:from de` and `:to en` choose the languages.
local parser = require 'recipes.parser'
local options = require 'recipes.translate.options'
local restore = require 'recipes.translate.restore'
local terminal = require 'lumoe.log.terminal'
local translation = require 'recipes.translate.translation'

local p = parser('lumoe recipes/interactive.lua', 'Translates the lines of standard input.')
p:argument('checkpoint', 'A checkpoint, or a folder with some (then the last)')
p:option('--from', 'Language of the input (the first it was trained on)')
p:option('--to', 'Language of the output', 'en')
p:option('--beam', 'Beams; 1: greedy', '4'):convert(options.count(1, 64))
local opts = p:parse()

local model, data = restore(opts.checkpoint)
local known = {}
for _, language in ipairs(data.languages) do known[language] = true end
local pair = { from = opts.from or data.langs[1], to = opts.to }
local function translate(line)
  local request = { sentences = { line }, from = pair.from, to = pair.to }
  return translation.run(model, data, { request }, { beam = opts.beam })[1][1]
end

local function choose(side, language)
  if not known[language] then
    io.stderr:write(("no language '%s'; there are: %s\n"):format(language, table.concat(data.languages, ' ')))
    return false
  end
  pair[side] = language
  return true
end
if not (choose('from', pair.from) and choose('to', pair.to)) then os.exit(1) end

local prompt = terminal.is(io.stdin) and function() io.write(pair.from, '→', pair.to, '> '):flush() end
  or function() end
prompt()
for line in io.lines() do
  local side, language = line:match '^:(%a+)%s+([%a_]+)%s*$'
  if side == 'from' or side == 'to' then choose(side, language)
  elseif line:match '%S' then io.write(translate(line), '\n') end
  prompt()
end
