--- Mixture-of-Experts layers: routers and balancers in Lua, everything below them in C.
--
--     local layer = moe.Layer {
--       dim = 512, experts = moe.FFN { experts = 8, hidden = 2048, activation = 'swiglu' },
--       router = moe.routers.top_k { dim = 512, top_k = 2 },
--       capacity = { factor = 1.25, select = 'random' },
--       balance = { moe.balance.load(0.01) },
--     }
--     local y, aux = layer(x, { language = language, valid = mask })
local lazy = {
  Layer = 'lumoe.moe.layer', FFN = 'lumoe.moe.ffn', Router = 'lumoe.moe.router',
  routers = 'lumoe.moe.routers', balance = 'lumoe.moe.balance',
  policies = 'lumoe.moe.policies', trace = 'lumoe.moe.trace',
}

local moe = {
  --- The number of experts, as a size that the layer binds: `nn.Linear { 512, moe.EXPERTS }`.
  EXPERTS = require('lumoe.nn.module').symbol 'moe.EXPERTS',
}

return setmetatable(moe, {
  __index = function(self, name)
    if not lazy[name] then return nil end
    local value = require(lazy[name])
    rawset(self, name, value)
    return value
  end,
})
