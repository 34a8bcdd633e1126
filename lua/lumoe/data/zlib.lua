--- Decompression through the system's zlib: gzip files line by line, and blocks in memory.
local ffi = require 'ffi'
local status = require 'lumoe.status'

ffi.cdef [[
  typedef struct lumoe_gz *lumoe_gzFile;
  lumoe_gzFile lumoe_gzopen(const char *path, const char *mode) __asm__("gzopen");
  int lumoe_gzread(lumoe_gzFile file, void *buffer, unsigned size) __asm__("gzread");
  int lumoe_gzclose(lumoe_gzFile file) __asm__("gzclose");
  const char *lumoe_gzerror(lumoe_gzFile file, int *code) __asm__("gzerror");

  typedef struct {
    const uint8_t *next_in; unsigned avail_in; unsigned long total_in;
    uint8_t *next_out; unsigned avail_out; unsigned long total_out;
    const char *msg; void *state; void *zalloc, *zfree, *opaque; int data_type; unsigned long adler, reserved;
  } lumoe_z_stream;
  int lumoe_inflateInit2(lumoe_z_stream *stream, int window, const char *version, int size) __asm__("inflateInit2_");
  int lumoe_inflate(lumoe_z_stream *stream, int flush) __asm__("inflate");
  int lumoe_inflateEnd(lumoe_z_stream *stream) __asm__("inflateEnd");
]]

local library = ffi.load 'libz.so.1' -- anchored here: an unreferenced library would be unloaded

local zlib = {}

local STREAM_END, BUFFER = 1, 65536

--- Inflates one stream held in a string.
---@param data string
---@param form 'gzip'|'zlib'|'raw'  raw: without any header, as in zip files
---@return string? content
---@return string? error
function zlib.inflate(data, form)
  local window = ({ gzip = 47, zlib = 47, raw = -15 })[form] -- 47: 15 bits, header found out
  local stream, out, parts = ffi.new 'lumoe_z_stream', ffi.new('uint8_t[?]', BUFFER), {}
  stream.next_in, stream.avail_in = ffi.cast('const uint8_t *', data), #data
  if library.lumoe_inflateInit2(stream, window, '1.2.0', ffi.sizeof(stream)) ~= 0 then return nil, 'zlib: no memory' end
  local code
  repeat
    stream.next_out, stream.avail_out = out, BUFFER
    code = library.lumoe_inflate(stream, 0)
    local got = BUFFER - stream.avail_out
    if got > 0 then parts[#parts + 1] = ffi.string(out, got) end
  until code ~= 0 or got == 0
  local message = stream.msg ~= nil and ffi.string(stream.msg) or 'cut off'
  library.lumoe_inflateEnd(stream)
  if code ~= STREAM_END then return nil, 'damaged compressed data: ' .. message end
  return table.concat(parts)
end

--- Iterates over the lines of a file, gzip or plain (zlib finds out). A line ends at \n; a \r before it goes.
-- Raises for a file that cannot be opened or is damaged, with its name.
---@param path string
---@return fun(): string?
function zlib.lines(path)
  local file = library.lumoe_gzopen(path, 'rb')
  if file == nil then status.refuse('%s: cannot be opened', path) end
  local buffer, rest, at, ended = ffi.new('uint8_t[?]', BUFFER), '', 1, false
  local function refill()
    local got = library.lumoe_gzread(file, buffer, BUFFER)
    local code = ffi.new 'int[1]'
    local message = ffi.string(library.lumoe_gzerror(file, code))
    if got < 0 or (got == 0 and code[0] < 0) then -- a cut-off file is an error only seen at its end
      library.lumoe_gzclose(file)
      status.refuse('%s: damaged: %s', path, (message:gsub('^.*: ', '')))
    end
    if got == 0 then
      ended = true
      library.lumoe_gzclose(file)
    else
      rest, at = rest:sub(at) .. ffi.string(buffer, got), 1
    end
  end
  return function()
    while true do
      local stop = rest:find('\n', at, true)
      if stop or (ended and at <= #rest) then
        local line = rest:sub(at, (stop or #rest + 1) - 1)
        at = (stop or #rest) + 1
        return (line:gsub('\r$', ''))
      end
      if ended then return nil end
      refill()
    end
  end
end

return zlib
