--- A file with one JSON object per line, each flushed as it is written: a kill tears at most the last line.
local cjson = require('cjson').new()
local options = require 'lumoe.options'

cjson.encode_invalid_numbers 'null' -- a loss that is NaN must not end the run, nor make the file unreadable
cjson.encode_sparse_array(true)

local Jsonl = {}
Jsonl.__index = Jsonl

--- Appends one record.
---@param record table
function Jsonl:write(record)
  assert(self.file:write(cjson.encode(record), '\n'))
  assert(self.file:flush())
end

function Jsonl:close()
  if self.file then self.file:close() end
  self.file = nil
end

-- The records of a file and the lines that they stand in. Only the last line may be torn.
local function parse(path)
  local records, lines, torn = {}, {}, nil
  for line in io.lines(path) do
    if torn then options.raise('jsonl', '%s:%d: not a JSON object', path, torn) end
    local good, record = pcall(cjson.decode, line)
    if good and type(record) == 'table' then
      records[#records + 1], lines[#lines + 1] = record, line
    else
      torn = #lines + 1
    end
  end
  return records, lines
end

--- The records of a file, in order; a torn last line is left out, any other bad line is an error.
---@param path string
---@return table[]
local function read(path) return (parse(path)) end

-- Keeps what a resumed run will not write again. Written aside and renamed, so a kill here loses nothing.
local function truncate(path, last_step)
  local existing = io.open(path)
  if not existing then return end
  existing:close()
  local records, lines = parse(path)
  local aside = path .. '.part'
  local out = assert(io.open(aside, 'w'))
  for i, record in ipairs(records) do
    if type(record.step) ~= 'number' or record.step <= last_step then assert(out:write(lines[i], '\n')) end
  end
  assert(out:close())
  assert(os.rename(aside, path))
end

--- Opens a log: a new one, or with `resume_step` the old one without the records of later steps.
---@param path string
---@param opts? { resume_step: integer? }
---@return lumoe.Jsonl
local function open(path, opts)
  options.check('jsonl', opts or {}, { resume_step = 'number?' })
  local step = opts and opts.resume_step
  if step then truncate(path, step) end
  local file, message = io.open(path, step and 'a' or 'w')
  if not file then options.raise('jsonl', '%s', message) end
  return setmetatable({ file = file }, Jsonl)
end

return { open = open, read = read }
