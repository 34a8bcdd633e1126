--- Routers that are there; each is one file, and a custom one is as much as these (moe/router.lua).
return {
  top_k = require 'lumoe.moe.routers.top_k',
  noisy_top_k = require 'lumoe.moe.routers.noisy_top_k',
  switch = require 'lumoe.moe.routers.switch',
}
