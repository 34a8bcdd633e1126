--- Runs busted on one spec file: `lumoe tests/run.lua tests/x_spec.lua`, as ctest does.
-- One process per file, since a C type can be declared to the FFI only once while busted
-- loads modules anew for each file. What a spec finds in its environment:
--   LUMOE               the program under test, for specs that start it (absolute)
--   LUMOE_TEST_PATTERN  run only specs that have this text, unless the path has it
-- The working directory is the root of the source tree; `require 'tests.x'` works.
local spec = assert(arg[1], 'usage: lumoe tests/run.lua SPEC')
local pattern = os.getenv 'LUMOE_TEST_PATTERN' or ''

local args = { [0] = 'busted', '--ignore-lua', '--output=plainTerminal', '--lpath=./?.lua' }
if pattern ~= '' and not spec:find(pattern, 1, true) then
  args[#args + 1] = '--filter=' .. pattern:gsub('%p', '%%%0')
end
args[#args + 1] = spec

_G.arg = args
require 'busted.runner' { standalone = false }
