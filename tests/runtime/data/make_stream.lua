--- Writes token streams for specs, through the C writer.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local status = require 'lumoe.status'
local stream = require 'lumoe.data.stream'

---@param path string
---@param sentences integer[][]
---@param about { vocab: integer, model: integer? }
local function make_stream(path, sentences, about)
  local info = ffi.new('lm_stream_info', { vocab = about.vocab, model = about.model or 77 })
  local writer = ffi.new 'lm_stream_writer *[1]'
  status.check(C.lm_stream_create(path, info, writer))
  for _, ids in ipairs(sentences) do
    local st = C.lm_stream_append(writer[0], ffi.new('int32_t[?]', #ids, ids), ffi.new('int32_t[1]', #ids), 1)
    if st < 0 then C.lm_stream_abandon(writer[0]) end
    status.check(st)
  end
  status.check(C.lm_stream_finish(writer[0]))
  return stream.open(path)
end

return make_stream
