--- MediaWiki's messages: i18n/<locale>.json beside i18n/en.json, the same keys in each.
local cjson = require 'cjson'
local languages = require 'lumoe.data.languages'
local text = require 'lumoe.data.text'

local reader = {}

local function parse_path(path) return path:match('^usr/share/mediawiki/(.*i18n.*)/([%a%-]+)%.json$') end

local function language_of(locale)
  if locale == 'zh-hans' then return 'zh' elseif locale == 'zh-hant' then return 'zh_TW' end
  if locale:find('%-') and locale ~= 'pt-br' then return nil end -- dialects and scripts
  return languages.of_locale(locale)
end

---@param path string
---@param langs table<string, boolean>
function reader.wants(path, langs)
  local _, locale = parse_path(path)
  return locale ~= nil and (locale == 'en' or langs[language_of(locale)] == true)
end

-- Wiki links and emphasis read as their text; messages with templates or several parameters are none.
local function plain(message)
  if type(message) ~= 'string' or message:find('{{', 1, true) or message:find('$2', 1, true) then return nil end
  message = message:gsub('%[%[[^%]|]*|([^%]]*)%]%]', '%1'):gsub('%[%[([^%]]*)%]%]', '%1'):gsub("''+", '')
  return text.strip_markup(message)
end

---@param input { files: table<string, string>, emit: fun(lang: string, english: string, foreign: string) }
function reader.read(input)
  local english = {}
  for _, path in ipairs(text.sorted_keys(input.files)) do
    local folder, locale = parse_path(path)
    local original = input.files[('usr/share/mediawiki/%s/en.json'):format(folder)]
    if locale ~= 'en' and original then
      english[folder] = english[folder] or cjson.decode(original)
      local ok, messages = pcall(cjson.decode, input.files[path])
      for _, key in ipairs(ok and text.sorted_keys(messages) or {}) do
        local e, f = plain(english[folder][key]), plain(messages[key])
        if e and f then input.emit(language_of(locale), e, f) end
      end
    end
  end
end

return reader
