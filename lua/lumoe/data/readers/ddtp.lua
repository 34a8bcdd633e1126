--- Debian's package descriptions (DDTP): apt's Translation-XX lists, aligned by Description-md5, then paragraph by
-- paragraph.
local languages = require 'lumoe.data.languages'
local text = require 'lumoe.data.text'

local reader = {}

-- The short description, then the paragraphs and list items of the long one. A paragraph ends at a line of one dot.
local function paragraphs(short, long)
  local list, open = { short }, nil
  for line in long:gmatch(' ?([^\n]*)\n') do
    if line:find('^%s*%.?%s*$') then
      open = nil
    elseif line:find('^%s*[%*%-+o] ') or not open then
      open = #list + 1
      list[open] = (line:gsub('^%s*[%*%-+o]%s+', ''))
    else
      list[open] = list[open] .. ' ' .. line:gsub('^%s+', '')
    end
  end
  return list
end

-- Calls visit(md5, description) for each stanza of a list; the description is what follows the md5 line.
local function descriptions(list, visit)
  local at = 1
  while at <= #list do
    local stop = list:find('\n\n', at, true) or #list
    local md5, after = list:match('^%s*Package: [^\n]*\nDescription%-md5: (%x+)\n()', at)
    if md5 then visit(md5, list:sub(after, stop)) end
    at = stop + 1
  end
end

-- Its short description, and the lines of the long one.
local function parts(description) return description:match('^Description%-[%w_]+: ([^\n]*)\n?(.*)$') end

--- The English descriptions by md5.
---@param files table<string, string>  list name -> its text
function reader.english(files)
  local found = {}
  for _, name in ipairs(text.sorted_keys(files)) do
    descriptions(files[name], function(md5, description) found[md5] = found[md5] or description end)
  end
  return found
end

---@param input { files: table<string, string>, english: table, emit: fun(lang: string, english: string, foreign: string) }
--- `files`: names end in the code, as in Translation-pt_BR
function reader.read(input)
  local seen = {}
  for _, name in ipairs(text.sorted_keys(input.files)) do
    local lang = languages.of_locale(name:match('Translation%-([%w_]+)'))
    descriptions(input.files[name], function(md5, description)
      local english = input.english[md5]
      if not english or seen[lang .. md5] then return end
      seen[lang .. md5] = true
      local ours, theirs = paragraphs(parts(english)), paragraphs(parts(description))
      if #ours == #theirs then
        for i = 1, #ours do input.emit(lang, ours[i], theirs[i]) end
      else
        input.emit(lang, ours[1], theirs[1])
      end
    end)
  end
end

return reader
