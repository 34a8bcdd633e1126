--- Starts a program: step after step runs the shell's command of the job.
local serve = require 'tests.bench.programs.serve'

serve(function(job)
  return function() assert(os.execute(job.command) == 0, job.command) end, {}
end)
