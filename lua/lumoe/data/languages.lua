--- The languages data can be prepared for: their codes here, in Debian's packages and on disk, and their script.
-- Codes are ISO 639 with a country only where two written standards exist (pt_BR beside pt, zh_TW beside zh).
local status = require 'lumoe.status'

local languages = {}

--- Named lists for `--langs`. English is always the other side.
languages.presets = {
  ['4'] = { 'de', 'fr', 'es', 'it' },
  ['8'] = { 'de', 'fr', 'es', 'it', 'da', 'cs', 'ru', 'ja' },
  ['50'] = {
    'it', 'da', 'fr', 'es', 'de', 'pt_BR', 'ru', 'sv', 'ca', 'nl', 'pl', 'cs', 'uk', 'el', 'ja', 'tr', 'zh', 'hu', 'sl',
    'id', 'ko', 'eu', 'sk', 'fi', 'gl', 'vi', 'nb', 'sr', 'et', 'bg', 'ro', 'hr', 'ar', 'lv', 'lt', 'he', 'bs', 'mr', 'fa',
    'is', 'km', 'kk', 'hi', 'ta', 'th', 'ms', 'bn', 'pa', 'gu', 'ka',
  },
}

-- Scripts as ranges of code points: first, last, first, last, …
local scripts = {
  latin = { 0x41, 0x5A, 0x61, 0x7A, 0xC0, 0x24F, 0x1E00, 0x1EFF },
  greek = { 0x370, 0x3FF, 0x1F00, 0x1FFF },
  cyrillic = { 0x400, 0x52F },
  armenian = { 0x530, 0x58F },
  hebrew = { 0x590, 0x5FF },
  arabic = { 0x600, 0x6FF, 0xFB50, 0xFDFF, 0xFE70, 0xFEFE },
  devanagari = { 0x900, 0x97F },
  bengali = { 0x980, 0x9FF },
  gurmukhi = { 0xA00, 0xA7F },
  gujarati = { 0xA80, 0xAFF },
  oriya = { 0xB00, 0xB7F },
  tamil = { 0xB80, 0xBFF },
  telugu = { 0xC00, 0xC7F },
  kannada = { 0xC80, 0xCFF },
  malayalam = { 0xD00, 0xD7F },
  sinhala = { 0xD80, 0xDFF },
  thai = { 0xE00, 0xE7F },
  lao = { 0xE80, 0xEFF },
  tibetan = { 0xF00, 0xFFF },
  myanmar = { 0x1000, 0x109F },
  georgian = { 0x10A0, 0x10FF },
  ethiopic = { 0x1200, 0x139F },
  khmer = { 0x1780, 0x17FF },
  hangul = { 0x1100, 0x11FF, 0xAC00, 0xD7A3 },
  cjk = { 0x3041, 0x30FF, 0x3400, 0x9FFF, 0x20000, 0x2FFFF }, -- kana and ideographs
}

local script_of = {
  el = 'greek', hy = 'armenian', ka = 'georgian', he = 'hebrew', yi = 'hebrew', ko = 'hangul', zh = 'cjk', zh_TW = 'cjk', ja = 'cjk',
  th = 'thai', lo = 'lao', km = 'khmer', my = 'myanmar', dz = 'tibetan', bo = 'tibetan', am = 'ethiopic', ti = 'ethiopic',
  bn = 'bengali', as = 'bengali', gu = 'gujarati', pa = 'gurmukhi', ['or'] = 'oriya', si = 'sinhala', ta = 'tamil', te = 'telugu',
  kn = 'kannada', ml = 'malayalam',
}
for code in ('ar fa ur ps ug ckb sd'):gmatch('%a+') do script_of[code] = 'arabic' end
for code in ('hi mr ne mai sa kok'):gmatch('%a+') do script_of[code] = 'devanagari' end
for code in ('ru uk be bg mk sr kk ky tg mn tt cv'):gmatch('%a+') do script_of[code] = 'cyrillic' end

--- The ranges of code points of a language's script (Latin unless known otherwise): first, last, first, last, …
---@param lang string
---@return integer[]
function languages.script(lang) return scripts[script_of[lang] or 'latin'] end

--- Whether it is written in the Latin script.
function languages.is_latin(lang) return script_of[lang] == nil end

--- Written without spaces between words: counted and compared by character (ja, zh, th, …).
local unspaced = {}
for code in ('ja zh zh_TW th lo km my dz bo'):gmatch('[%a_]+') do unspaced[code] = true end
function languages.is_unspaced(lang) return unspaced[lang] == true end

-- Locales that are variants of another standard; their text would only repeat or contradict it.
local variants = {}
for code in ('fr_CA fr_CH fr_BE de_CH de_AT nl_BE ca_VALENCIA it_CH zh_HK'):gmatch('[%a_]+') do variants[code] = true end
local renamed = { no = 'nb', iw = 'he', ['in'] = 'id', tl = 'fil' }

--- The code here of a locale name (`pt-BR`, `zh_CN`, `de_DE.UTF-8`); nil for variants (`sr@latin`, `es_MX`) and for
-- what is no locale.
---@param locale string
---@return string?
function languages.of_locale(locale)
  local name = locale:gsub('%..*$', ''):gsub('%-', '_')
  local lang, region = name:match('^(%a%a%a?)_(%a+)$')
  lang, region = (lang or name:match('^%a%a%a?$') or ''):lower(), (region or ''):upper()
  if lang == '' then return nil end
  lang = renamed[lang] or lang
  if variants[lang .. '_' .. region] then return nil end
  if lang == 'zh' then return (region == 'TW' or region == 'HANT') and 'zh_TW' or 'zh' end
  if lang == 'pt' then return region == 'BR' and 'pt_BR' or 'pt' end
  if lang == 'es' and region ~= '' and region ~= 'ES' then return nil end
  if lang == 'en' then
    if region == '' or region == 'US' or region == 'C' then return 'en' end
    return region == 'GB' and 'en_GB' or nil
  end
  return lang
end

--- A language's name in Debian package names (`libreoffice-help-pt-br`).
---@param lang string
---@return string
function languages.package_suffix(lang)
  if lang == 'zh' then return 'zh-cn' end
  return (lang:lower():gsub('_', '-'))
end

-- What software is translated into: the codes of ISO 639-1, with more letters where that has none or where two written
-- standards exist.
local known = {}
for code in ([[
  aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et eu fa
  ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko
  kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn nr nv ny oc oj om or os pa pi
  pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tn to tr ts tt tw ty ug uk
  ur uz ve vi vo wa wo xh yi yo za zh zu
  ace ach arn ast bal ban bem brx byn cgg chr ckb crh csb dgo dsb fil frp fur gez gsw haw hne hsb ilo kab kmr kok lij mai mhr mjw mni
  nap nds nso pap pms sat scn shn szl tig tpi wal wae en_GB pt_BR zh_TW
]]):gmatch '%S+' do known[code] = true end

--- Raises where a language is none that packages may have texts in; those of one's own may be in any.
---@param langs string[]
function languages.check_known(langs)
  for _, lang in ipairs(langs) do
    if not known[lang] then
      status.refuse("languages: no texts in '%s'; those with the most are %s", lang, table.concat(languages.presets['50'], ' '))
    end
  end
end

--- The codes that a `--langs` value means: a preset's name, or codes with commas or spaces between.
-- Order is kept, repeats and English are dropped. Raises on what is no language code.
---@param value string|string[]
---@return string[]
function languages.parse(value)
  local given = value
  if type(value) == 'string' then
    given = languages.presets[value] or {}
    if not languages.presets[value] then
      for code in value:gmatch('[^,%s]+') do given[#given + 1] = code end
    end
  end
  local list, seen = {}, { en = true }
  for _, code in ipairs(given) do
    local lang = languages.of_locale(code)
    if not lang then
      status.refuse('languages: %q is no language code; give codes such as de,fr,pt_BR, or one of the presets 4, 8, 50', code)
    end
    if not seen[lang] then
      seen[lang] = true
      list[#list + 1] = lang
    end
  end
  if #list == 0 then status.refuse 'languages: none given beside English' end
  return list
end

return languages
