--- Token streams: the pieces of many sentences in one mapped file. Made by a tokenizer's encode_tsv.
local ffi = require 'ffi'
local C = require 'lumoe.ffi'
local options = require 'lumoe.options'
local status = require 'lumoe.status'

local stream = {}

local Stream = {}
Stream.__index = Stream

--- Opens a stream; a file that is cut short, or is none, is an error that names it.
---@param path string
---@return lumoe.Stream
function stream.open(path)
  if type(path) ~= 'string' then options.raise('stream.open', 'wants a path, not a %s', type(path)) end
  local out = ffi.new 'lm_stream *[1]'
  status.check(C.lm_stream_open(path, out))
  local handle = ffi.gc(out[0], C.lm_stream_close)
  local about = ffi.new 'lm_stream_info'
  C.lm_stream_about(handle, about)
  return setmetatable({
    path = path,
    handle = handle,
    about = about,
    sentences = tonumber(about.sentences),
    tokens = tonumber(about.tokens),
    vocab = about.vocab,
    hash = ('%016x'):format(about.model),
  }, Stream)
end

---@class lumoe.Stream
---@field path string
---@field sentences integer
---@field tokens integer
---@field vocab integer
---@field hash string  of the tokenizer's model

--- The ids of sentence `i`, counted from 0 as all positions in data are.
---@param i integer
---@return integer[]
function Stream:read(i)
  local length = ffi.new 'int64_t[1]'
  status.check(C.lm_stream_read(self.handle, i, nil, 0, length))
  local n = tonumber(length[0])
  local ids = ffi.new('int32_t[?]', n)
  status.check(C.lm_stream_read(self.handle, i, ids, n, length))
  local out = {}
  for k = 1, n do out[k] = ids[k - 1] end
  return out
end

return stream
