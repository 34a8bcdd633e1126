--- What a run says while it works: a progress line, metrics.jsonl, TensorBoard's event files.
local jsonl = require 'lumoe.log.jsonl'

return {
  progress = require 'lumoe.log.progress',
  jsonl = jsonl.open,
  read_jsonl = jsonl.read,
  tensorboard = require('lumoe.log.tensorboard').open,
}
