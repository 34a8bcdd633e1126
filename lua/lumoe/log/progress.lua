--- One line that says how far a job is, with tqdm's habits:
--
--   train:  45%|█████████▉            | 450/1000 [01:23<01:42, 5.2k tok/s, loss 3.210, drop 1.2%]
--
-- On a terminal it is redrawn in place, at most ten times a second; elsewhere it is a plain line every ten
-- seconds, the first and the last one included. Rates are those of the last half-minute.
local options = require 'lumoe.options'
local terminal = require 'lumoe.log.terminal'

local REDRAW, PLAIN, WINDOW, SAMPLE = 0.1, 10, 30, 1 -- seconds

local Progress = {}
Progress.__index = Progress

local function clock_face(seconds)
  local s = math.floor(seconds + 0.5)
  local hours, minutes = math.floor(s / 3600), math.floor(s / 60) % 60
  if hours > 0 then return ('%d:%02d:%02d'):format(hours, minutes, s % 60) end
  return ('%02d:%02d'):format(minutes, s % 60)
end

--- 0.25, 7.3, 950, 5.2k, 61.4M
local function short(value)
  for _, unit in ipairs { { 1e12, 'T' }, { 1e9, 'G' }, { 1e6, 'M' }, { 1e3, 'k' } } do
    if value >= unit[1] then return ('%.1f%s'):format(value / unit[1], unit[2]) end
  end
  return (value >= 100 and '%.0f' or value >= 1 and '%.1f' or '%.2f'):format(value)
end

local KNOWN = { -- fields with a form of their own, in the order in which they are shown
  { 'loss', function(value) return ('loss %.3f'):format(value) end },
  { 'dropped', function(value) return ('drop %.1f%%'):format(100 * value) end },
  { 'lr', function(value) return ('lr %.2e'):format(value) end },
}

local function postfix(fields)
  local parts, names, known = {}, {}, { tokens = true }
  for _, field in ipairs(KNOWN) do
    known[field[1]] = true
    if fields[field[1]] then parts[#parts + 1] = field[2](fields[field[1]]) end
  end
  for name in pairs(fields) do
    if not known[name] then names[#names + 1] = name end
  end
  table.sort(names)
  for _, name in ipairs(names) do
    local value = fields[name]
    parts[#parts + 1] = name .. ' ' .. (type(value) == 'number' and ('%.4g'):format(value) or tostring(value))
  end
  return parts
end

-- Work done per second over the window, from samples a second or more apart.
local function rates(self, now)
  local from = self.samples[1]
  local seconds = now - from.time
  if seconds <= 0 then return 0, 0 end
  return (self.done - from.done) / seconds, (self.tokens - from.tokens) / seconds
end

local function sample(self, now)
  local samples = self.samples
  if now - samples[#samples].time < SAMPLE then return end
  samples[#samples + 1] = { time = now, done = self.done, tokens = self.tokens }
  while #samples > 2 and now - samples[2].time >= WINDOW do table.remove(samples, 1) end
end

local function describe(self, now)
  local rate, token_rate = rates(self, now)
  local count = self.scale and short or function(n) return ('%d'):format(n) end
  local times = clock_face(now - self.started)
  if self.total then
    local left = self.total - self.done
    times = times .. '<' .. (left <= 0 and '00:00' or rate > 0 and clock_face(left / rate) or '?')
  end
  local speed = ('%s %s/s'):format(short(rate), self.unit)
  if self.tokens > 0 then speed = short(token_rate) .. ' tok/s' end
  local parts = { times, speed }
  for _, part in ipairs(postfix(self.fields)) do parts[#parts + 1] = part end
  local done = count(self.done) .. (self.total and '/' .. count(self.total) or ' ' .. self.unit)
  return done, '[' .. table.concat(parts, ', ') .. ']'
end

local function percent(self)
  if not self.total then return nil end
  return self.total > 0 and math.floor(100 * math.min(self.done / self.total, 1)) or 100
end

local EIGHTHS = { [0] = '', '▏', '▎', '▍', '▌', '▋', '▊', '▉' }

local function bar(self, width)
  local fraction = self.total > 0 and math.min(self.done / self.total, 1) or 1
  if not self.utf8 then
    local full = math.floor(fraction * width)
    return ('#'):rep(full) .. ('-'):rep(width - full)
  end
  local eighths = math.floor(fraction * width * 8)
  local full, part = math.floor(eighths / 8), EIGHTHS[eighths % 8]
  return ('█'):rep(full) .. part .. (' '):rep(width - full - (part ~= '' and 1 or 0))
end

local function line(self, now)
  local head = self.desc ~= '' and self.desc .. ': ' or ''
  local done, brackets = describe(self, now)
  if not self.terminal then
    return head .. (self.total and ('%s %d%% '):format(done, percent(self)) or done .. ' ') .. brackets
  end
  local width = self.width() - 1 -- the last column would make some terminals wrap
  if not self.total then return terminal.cut(head .. done .. ' ' .. brackets, width) end
  head = head .. ('%3d%%'):format(percent(self))
  local tail = done .. ' ' .. brackets
  local room = width - terminal.columns(head) - terminal.columns(tail) - 3
  if room >= 4 then return ('%s|%s| %s'):format(head, bar(self, math.min(room, 40)), tail) end
  return terminal.cut(head .. ' ' .. tail, width)
end

local function draw(self, now)
  if self.terminal then
    self.stream:write('\r', line(self, now), '\27[K')
  else
    self.stream:write(line(self, now), '\n')
  end
  self.stream:flush()
  self.drawn, self.shown = now, self.done
end

--- Says that `n` more units are done.
---@param n integer
---@param fields? table  shown behind the rate until replaced: `loss`, `dropped` (a fraction), `lr`,
---  anything else by its name; `tokens` (those of these n units) makes the rate one of tokens
function Progress:update(n, fields)
  self.done = self.done + n
  if fields then
    self.fields = fields
    self.tokens = self.tokens + (fields.tokens or 0)
  end
  if self.quiet then return end
  local now = self.clock()
  if not self.drawn or now - self.drawn >= self.interval then draw(self, now) end
  sample(self, now)
end

--- Prints a line of text that stays, above the bar.
---@param text string
function Progress:message(text)
  if self.quiet then return end
  if self.terminal and self.drawn and not self.closed then
    self.stream:write('\r\27[K', text, '\n')
    draw(self, self.clock())
  else
    self.stream:write(text, '\n')
    self.stream:flush()
  end
end

--- Shows the final state and ends the line. May be called again, to no effect.
function Progress:close()
  if self.closed then return end
  self.closed = true
  if self.quiet then return end
  if self.terminal or self.shown ~= self.done then draw(self, self.clock()) end
  if self.terminal then
    self.stream:write '\n'
    self.stream:flush()
  end
end

local WANTED = {
  total = 'number?', desc = 'string?', initial = 'number?', unit = 'string?', scale = 'boolean?',
  quiet = 'boolean?',
  stream = 'any?', terminal = 'boolean?', utf8 = 'boolean?', width = 'number?', clock = 'function?',
}

--- Starts a progress line.
---@param opts table  total, initial: integer?; desc, unit: string?; scale, quiet: boolean?
---  total: units in all, if known; initial: those done before, when a job resumes; unit: its name (`it`);
---  scale: counts as 12.3M; quiet: print nothing (ranks other than 0).
---  stream (stderr), terminal, utf8, width and clock replace what is found out about the terminal
---@return lumoe.Progress
local function progress(opts)
  options.check('progress', opts, WANTED)
  local stream, clock = opts.stream or io.stderr, opts.clock or terminal.clock
  local is_terminal, utf8 = opts.terminal, opts.utf8
  if is_terminal == nil then is_terminal = terminal.is(stream) end
  if utf8 == nil then utf8 = terminal.utf8() end
  local initial, now = opts.initial or 0, clock()
  return setmetatable({
    total = opts.total, desc = opts.desc or '', unit = opts.unit or 'it', scale = opts.scale,
    quiet = opts.quiet,
    done = initial, tokens = 0, fields = {},
    started = now, samples = { { time = now, done = initial, tokens = 0 } },
    stream = stream, clock = clock, terminal = is_terminal, utf8 = utf8,
    interval = is_terminal and REDRAW or PLAIN,
    width = function() return opts.width or terminal.width(stream) end, -- asked anew: windows are resized
  }, Progress)
end

return progress
