--- Policies: from how experts have been used to what should become of them.
return {
  placement = require 'lumoe.moe.policies.placement',
}
