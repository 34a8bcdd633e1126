--- A small corpus in the forms of the default sources, made of words by a fixed generator:
-- enough pages to make LuaJIT compile the readers.
local corpus = {}

local english = 'open close the a file window menu print select choose option page text letter number color button help change '
  .. 'insert format table'
local german = 'öffnen schließen die eine Datei Fenster Menü drucken auswählen wählen Option Seite Text Brief Zahl Farbe Knopf '
  .. 'Hilfe ändern einfügen Format Tabelle'

local function words_of(list)
  local words = {}
  for word in list:gmatch('%S+') do words[#words + 1] = word end
  return words
end

---@param pages integer
---@return table<string, table<string, string>> packages
---@return table<string, string> lists
function corpus.make(pages)
  local state, from, to = 42, words_of(english), words_of(german)
  local function random(n)
    state = (state * 16807) % 2147483647
    return state % n + 1
  end
  local function sentence()
    local e, f = {}, {}
    for i = 1, 4 + random(9) do
      local w = random(#from)
      e[i], f[i] = from[w], to[w]
    end
    local last = random(40) == 1 and ' %d.' or '.'
    return 'The ' .. table.concat(e, ' ') .. last, 'Das ' .. table.concat(f, ' ') .. last
  end

  local lo_en, lo_de, gnome = {}, {}, { ['usr/share/doc/gnome-user-docs/copyright'] = 'CC-BY-SA' }
  local list_en, list_de = {}, {}
  for page = 1, pages do
    local a, b, c, d = {}, {}, {}, {}
    for i = 1, 20 do
      local e, f = sentence()
      a[i], b[i] = ('<p id="par_id%d">%s</p>'):format(i, e), ('<p class="x" id="par_id%d">%s</p>'):format(i, random(9) == 1 and e or f)
      e, f = sentence()
      local e2, f2 = sentence()
      c[i], d[i] = ('<p>%s <gui>%s</gui></p>'):format(e, e2), ('<p>%s <gui>%s</gui></p>'):format(f, f2)
    end
    lo_en[('usr/share/libreoffice/help/en-US/text/%d.html'):format(page)] = table.concat(a, '\n')
    lo_de[('usr/share/libreoffice/help/de/text/%d.html'):format(page)] = table.concat(b, '\n')
    gnome[('usr/share/help/C/%d.page'):format(page)] = '<page>' .. table.concat(c) .. '</page>'
    gnome[('usr/share/help/de/%d.page'):format(page)] = '<page>' .. table.concat(d) .. '</page>'
    local e, f = sentence()
    local e2, f2 = sentence()
    list_en[page] = ('Package: p%d\nDescription-md5: %032x\nDescription-en: %s\n %s\n'):format(page, page, e, e2)
    list_de[page] = ('Package: p%d\nDescription-md5: %032x\nDescription-de: %s\n %s\n'):format(page, page, f, f2)
  end
  lo_de['usr/share/doc/libreoffice-help-de/copyright'] = 'MPL-2.0'
  return { ['libreoffice-help-en-us'] = lo_en, ['libreoffice-help-de'] = lo_de, ['gnome-user-docs'] = gnome },
    { en = table.concat(list_en, '\n'), de = table.concat(list_de, '\n') }
end

return corpus
