--- The units of a model, in the order of a forward pass.
local layers = require 'lumoe.estimate.layers'
local Unit = require 'lumoe.estimate.unit'

---@param context table  model, batch, mesh, bytes, rows
---@return table[] units
return function(context)
  local model, batch, rows = context.model, context.batch, context.rows
  local list = {}
  local function unit(name, block)
    local u = Unit.new(name, context)
    u.block = block or false -- recomputed as a whole where that is asked for
    list[#list + 1] = u
    return u
  end

  layers.embedding(unit 'source', rows * batch.source)
  for i = 1, model.encoder_layers do
    layers.encoder(unit('encoder.' .. i, true), rows, batch.source, model.has_experts(i, model.encoder_layers))
  end
  layers.norm(unit 'encoder_norm', rows * batch.source)
  if model.decoder_layers > 0 then
    layers.embedding(unit 'target', rows * batch.target)
    for i = 1, model.decoder_layers do
      layers.decoder(unit('decoder.' .. i, true), rows, batch.source, batch.target,
        model.has_experts(i, model.decoder_layers))
    end
    layers.norm(unit 'decoder_norm', rows * batch.target)
  end
  layers.loss(unit 'loss', rows * (model.decoder_layers > 0 and batch.target or batch.source))
  return list
end
