--- Data: token streams, batches over them; preparation of text is loaded when first named.
local data = {}

local MODULES = { stream = true, batches = true, prepare = true }

return setmetatable(data, {
  __index = function(self, name)
    if not MODULES[name] then return nil end
    local module = require('lumoe.data.' .. name)
    rawset(self, name, module)
    return module
  end,
})
