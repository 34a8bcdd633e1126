--- Prepares parallel text for the translation recipes.
--   lumoe recipes/prepare.lua                      de fr es it, about 355,000 pairs out of Debian packages
--   lumoe recipes/prepare.lua --langs 8            adds da cs ru ja; 50 is the widest preset; any list works
--   lumoe recipes/prepare.lua --data my/texts      your own texts: TSV, or aligned files such as a.en and a.de
local argparse = require 'argparse'
local prepare = require 'lumoe.data.prepare'

local parser = argparse('prepare.lua', 'Fetches, aligns, cleans and splits parallel text, English with other languages.')
parser:option('--langs', 'languages: 4, 8, 50, or codes such as de,fr,pt_BR (default: 4; with --data: those found there)')
parser:option('--data-dir', 'where the data goes (default: data/<languages>)')
parser:option('--data --from', 'a directory of your own texts instead of Debian packages')
parser:option('--sources', 'small (help texts and package descriptions) or all (default: small up to 8 languages)')
parser:option('--jobs', 'processes', '2'):convert(tonumber)
parser:flag('--force', 'prepare anew even if the data is there')
local args = parser:parse(arg)

local manifest = prepare.run {
  langs = args.langs, dir = args.data_dir, from = args.data, sources = args.sources, jobs = args.jobs, force = args.force,
}
print(prepare.summary(manifest))
