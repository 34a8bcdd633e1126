--- Plain text out of marked-up text: the few string operations that every reader shares.
-- All strings are UTF-8. Patterns are byte patterns; LuaJIT's character classes are ASCII whatever the locale, so %a is
-- [A-Za-z] and a byte above 127 is part of some longer character.
local text = {}

local floor, char = math.floor, string.char

--- The UTF-8 bytes of one code point; '' for a number that is none (surrogates, beyond U+10FFFF).
---@param code integer
---@return string
function text.utf8_char(code)
  if code < 0 or code > 0x10FFFF or (code >= 0xD800 and code <= 0xDFFF) then return '' end
  if code < 0x80 then return char(code) end
  if code < 0x800 then return char(0xC0 + floor(code / 64), 0x80 + code % 64) end
  if code < 0x10000 then
    return char(0xE0 + floor(code / 4096), 0x80 + floor(code / 64) % 64, 0x80 + code % 64)
  end
  return char(0xF0 + floor(code / 262144), 0x80 + floor(code / 4096) % 64, 0x80 + floor(code / 64) % 64, 0x80 + code % 64)
end

--- How many characters (code points) a valid UTF-8 string has.
---@param s string
---@return integer
function text.utf8_length(s)
  local _, continuation = s:gsub('[\128-\191]', '')
  return #s - continuation
end

--- Where a string stops being UTF-8: nil if it is valid, else the 1-based byte position of the first bad byte.
-- Overlong forms, surrogates and code points beyond U+10FFFF are bad.
---@param s string
---@return integer?
function text.invalid_utf8(s)
  if not s:find('[\128-\255]') then return nil end
  local at, size = 1, #s
  while at <= size do
    local a, b, c, d = s:byte(at, at + 3)
    local low, high, more = 0x80, 0xBF, 0
    if a >= 0x80 and a < 0xC2 then return at
    elseif a >= 0xC2 and a < 0xE0 then more = 1
    elseif a >= 0xE0 and a < 0xF0 then
      more = 2
      if a == 0xE0 then low = 0xA0 elseif a == 0xED then high = 0x9F end
    elseif a >= 0xF0 and a < 0xF5 then
      more = 3
      if a == 0xF0 then low = 0x90 elseif a == 0xF4 then high = 0x8F end
    elseif a >= 0xF5 then return at end
    if more >= 1 and not (b and b >= low and b <= high) then return at end
    if more >= 2 and not (c and c >= 0x80 and c <= 0xBF) then return at end
    if more >= 3 and not (d and d >= 0x80 and d <= 0xBF) then return at end
    at = at + more + 1
  end
end

local invisible = {
  ['\194\160'] = ' ', -- no-break space
  ['\194\173'] = '', -- soft hyphen
  ['\226\128\139'] = '', -- zero-width space
  ['\226\128\175'] = ' ', -- narrow no-break space
  ['\239\187\191'] = '', -- byte order mark
}

--- One line without tabs: every run of white space becomes a space, invisible characters and outer spaces go.
---@param s string
---@return string
function text.squeeze(s)
  if s:find('[\194\226\239]') then
    s = s:gsub('\194[\160\173]', invisible):gsub('\226\128[\139\175]', invisible):gsub('\239\187\191', '')
  end
  if s:find('%c') or s:find('  ', 1, true) then s = s:gsub('[%c%s]+', ' ') end
  if s:byte(1) == 0x20 then s = s:sub(2) end
  if s:byte(-1) == 0x20 then s = s:sub(1, -2) end
  return s
end

local entities = {
  amp = '&', lt = '<', gt = '>', quot = '"', apos = "'", nbsp = ' ', shy = '', hellip = '…', mdash = '—', ndash = '–',
  lsquo = '‘', rsquo = '’', ldquo = '“', rdquo = '”', laquo = '«', raquo = '»', copy = '©', reg = '®', trade = '™',
  times = '×', rarr = '→', larr = '←', uarr = '↑', darr = '↓', deg = '°', eacute = 'é', egrave = 'è', agrave = 'à',
  ccedil = 'ç', auml = 'ä', ouml = 'ö', uuml = 'ü', Auml = 'Ä', Ouml = 'Ö', Uuml = 'Ü', szlig = 'ß', ntilde = 'ñ',
}

--- Replaces character references (&eacute; &#233; &#xE9;); unknown names stay as they are.
---@param s string
---@return string
function text.decode_entities(s)
  if not s:find('&', 1, true) then return s end
  s = s:gsub('&#[xX](%x+);', function(hex) return text.utf8_char(tonumber(hex, 16)) end)
  s = s:gsub('&#(%d+);', function(decimal) return text.utf8_char(tonumber(decimal)) end)
  return (s:gsub('&(%a[%w]*);', entities))
end

--- The text between the tags. Neighbouring elements stay apart ("<gui>View</gui><gui>Sort</gui>" is "View Sort").
---@param s string
---@return string
function text.strip_markup(s)
  if s:find('<', 1, true) then s = s:gsub('><', '> <'):gsub('<[^<>]*>', '') end
  s = text.squeeze(text.decode_entities(s))
  return (s:gsub(' ([,%.]) ', '%1 '):gsub(' ([,%.])$', '%1'))
end

--- The keys of a table of strings, sorted by byte: the order in which everything here is read.
---@param map table<string, any>
---@return string[]
function text.sorted_keys(map)
  local keys = {}
  for key in pairs(map) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

return text
