--- Balancers: from a choice and its statistics over the global micro-batch to a loss.
--
-- A balancer is a function `balance(choice, batch)`, or a table with a method of that name. It returns
-- a loss of one element, or nothing. `batch` (moe/batch.lua) knows the loads of all ranks and takes
-- means over all ranks' tokens, so that a loss made of them is the same under every layout.
return {
  load = require 'lumoe.moe.balance.load',
  importance = require 'lumoe.moe.balance.importance',
  z = require 'lumoe.moe.balance.z',
}
