--- Runs a reader over files given as a table, and lists what it emits.
return function(reader, files, english)
  local list = {}
  reader.read {
    files = files, english = english,
    emit = function(lang, e, f) list[#list + 1] = ('%s: %s = %s'):format(lang, e, f) end,
  }
  return list
end
