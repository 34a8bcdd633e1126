--- What one unit (a Transformer layer, the embedding, the loss) costs a rank: parameters, tensors, products,
-- messages. layers.lua fills it in the order of a forward pass; memory, traffic and time are read off it.
--
-- Tensors of a step live as the runtime keeps them: results made in Lua (`makes`) until the step's scope ends,
-- what only the tape holds (`saves`) until its backward. `loose` is what Lua holds and no backward needs. `part` says of what
-- operations are: 'dense', 'experts' or 'loss'.
local Unit = {}
Unit.__index = Unit

local LARGE, GRAIN = 32768, 1024

--- What a tensor of so many bytes takes (runtime/memory.c): eight classes to an octave, then whole KiB.
function Unit.block(bytes)
  if bytes <= 64 then return 64 end
  if bytes > LARGE then return math.ceil(bytes / GRAIN) * GRAIN end
  local low = 64
  while 2 * low < bytes do low = 2 * low end
  local step = math.max(low / 8, 64)
  return low + math.ceil((bytes - low) / step) * step
end

---@param context table  mesh, model, batch, bytes (of an element), rows (sequences of a rank and micro-batch)
function Unit.new(name, context)
  return setmetatable({ name = name, context = context, part = 'dense', parameters = {}, ops = {}, traffic = {},
    kept = 0, saved = 0, exchange = 0, exchange_now = 0, exchange_plan = 0, widest = 0, stream = 0,
    arguments = 0, loose = 0, before = 0, weights = 0, rows = 0, shadows = 0 }, Unit)
end

--- A parameter of this whole shape. Options: expert: spread over ep in dim 1; cut: the dim that tp (etp of an
-- expert) cuts; f32: stays f32, as every vector does.
function Unit:parameter(shape, opts)
  opts = opts or {}
  local mesh, whole, here = self.context.mesh, 1, 1
  for d, size in ipairs(shape) do
    local part = size
    if opts.expert and d == 1 then part = math.ceil(part / mesh.ep) end
    if d == opts.cut then part = math.ceil(part / (opts.expert and mesh.etp or mesh.tp)) end
    whole, here = whole * size, here * part
  end
  local model = self.context.model
  self.parameters[#self.parameters + 1] = {
    whole = whole, here = here, bytes = (opts.f32 or #shape < 2) and 4 or self.context.bytes,
    group = opts.expert and 'expert' or 'dense', wire = opts.expert and 'replicas' or 'data',
    replicas = opts.expert and mesh.edp or mesh.dp, network = opts.expert and #shape == 3,
    active = opts.expert and whole * model.top_k / model.experts or whole,
  }
end

local function note(self, bytes)
  self.widest = math.max(self.widest, bytes)
  self.ops[#self.ops + 1] = { part = self.part, flops = 0, bytes = 2 * bytes } -- written once, read once
end

--- A tensor that Lua holds to the end of the step.
function Unit:makes(count, bytes)
  bytes = Unit.block(count * (bytes or self.context.bytes))
  self.kept = self.kept + bytes
  note(self, bytes)
end

--- A tensor that the tape alone holds. exchange: booked under that purpose.
function Unit:saves(count, bytes, exchange)
  bytes = Unit.block(count * (bytes or self.context.bytes))
  if exchange then self.exchange = self.exchange + bytes else self.saved = self.saved + bytes end
  note(self, bytes)
end

--- A tensor that is let go of in forward.
function Unit:passes(count, bytes) note(self, Unit.block(count * (bytes or self.context.bytes))) end

--- Bytes that the exchange holds for as long as one of its legs in backward takes.
function Unit:receives(bytes) self.exchange_now = math.max(self.exchange_now, bytes) end

--- A plan: each micro-batch makes one. Lua lets go of them when it collects, so all of a step are there, and the last
-- one of the step before.
function Unit:plans(bytes)
  bytes = (1 + self.context.batch.micro_batches) * bytes
  self.exchange, self.exchange_plan = self.exchange + bytes, self.exchange_plan + bytes
end

--- So many elements of weights are read.
function Unit:reads(count) self.ops[#self.ops + 1] = { part = self.part, flops = 0, bytes = count * self.context.bytes } end

--- A product of [m, k] by [k, n]; backward takes two of them. weights: bytes of the right operand to be read.
function Unit:product(m, n, k)
  local bytes = (m * k + n * k + m * n) * self.context.bytes
  self.ops[#self.ops + 1] = { part = self.part, flops = 2 * m * n * k, bytes = bytes }
end

--- Bytes that a rank sends, and in how many messages. pass: 'forward' (again when recomputed), 'backward' or 'once'. far: of
-- them { bytes, messages } between hosts, where members of the group are not all alike.
function Unit:sends(wire, group, pass, bytes, messages, far)
  if bytes > 0 then
    self.traffic[#self.traffic + 1] = { wire = wire, group = group, pass = pass, bytes = bytes, messages = messages, far = far }
  end
end

return Unit
