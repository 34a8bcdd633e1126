--- Alignment of documents by their skeleton: translation tools (itstool, po4a, xml2po) keep every element, so the n-th
-- paragraph of a translated page is the translation of the n-th paragraph of the English one, as long as both pages
-- have the same elements in the same order.
local text = require 'lumoe.data.text'

local skeleton = {}

--- A set of names out of a string of words.
---@param words string
---@return table<string, boolean>
function skeleton.set(words)
  local set = {}
  for word in words:gmatch('%S+') do set[word] = true end
  return set
end

-- Removes <name …>…</name>, without pattern backtracking over the whole page.
local function drop(page, name)
  local parts, at = {}, 1
  while true do
    local first, last, rest = page:find('<' .. name .. '%f[%s>/]([^>]*)>', at)
    if not first then break end
    parts[#parts + 1] = page:sub(at, first - 1)
    at = last + 1
    if rest:sub(-1) ~= '/' then
      local _, close = page:find('</' .. name .. '%s*>', at)
      at = (close or #page) + 1
    end
  end
  if at == 1 then return page end
  parts[#parts + 1] = page:sub(at)
  return table.concat(parts)
end

--- The blocks of a page: the text of each listed element up to the next listed tag.
---@param page string
---@param blocks table<string, boolean>  names of elements that hold a paragraph or structure
---@param dropped string[]               names of elements that are no text (code) or differ between languages (credits)
---@return string[] names
---@return string[] bodies  plain text, as long as names
function skeleton.blocks(page, blocks, dropped)
  page = page:gsub('<!%-%-.-%-%->', ''):gsub('<!DOCTYPE[^>%[]*%b[]%s*>', ''):gsub('<!DOCTYPE[^>]*>', '')
  for _, name in ipairs(dropped) do
    if page:find('<' .. name, 1, true) then page = drop(page, name) end
  end
  local names, bodies, open, from = {}, {}, nil, 1
  for first, close, name, rest, after in page:gmatch('()<(/?)([%w:]+)([^>]*)>()') do
    if blocks[name] then
      if open then
        names[#names + 1], bodies[#bodies + 1] = open, text.strip_markup(page:sub(from, first - 1))
        open = nil
      end
      if close == '' and rest:sub(-1) ~= '/' then open, from = name, after end
    end
  end
  return names, bodies
end

--- Emits the aligned blocks of two pages.
-- Pages with equal skeletons are aligned whole. Otherwise the common head is, less `margin` blocks before the first
-- difference, if it covers at least `cover` of the English page.
---@param english { names: string[], bodies: string[] }
---@param foreign { names: string[], bodies: string[] }
---@param options { cover: number, margin: integer }
---@param emit fun(english: string, foreign: string)
function skeleton.align(english, foreign, options, emit)
  local total, common = #english.names, 0
  while common < total and english.names[common + 1] == foreign.names[common + 1] do common = common + 1 end
  if common < total or #foreign.names ~= total then
    if common < options.cover * total or options.cover >= 1 then return end
    common = common - options.margin
  end
  for i = 1, common do
    if english.bodies[i] ~= '' and foreign.bodies[i] ~= '' then emit(english.bodies[i], foreign.bodies[i]) end
  end
end

return skeleton
