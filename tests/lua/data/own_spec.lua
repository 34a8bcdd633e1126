local directory = require 'tests.lua.data.directory'
local prepare = require 'lumoe.data.prepare'
local shell = require 'lumoe.data.shell'

local function quiet() end

describe("the user's own texts", function()
  local dir, messages

  local function run(files, options)
    dir, messages = directory(files), {}
    options = options or {}
    options.from, options.dir = dir, dir .. '/out'
    options.report = function(line, final) if final then messages[#messages + 1] = line end end
    return prepare.run(options)
  end
  local function all(lang) -- the pairs of all splits, sorted
    local list = {}
    for _, split in ipairs { 'train', 'valid', 'test' } do
      for line in io.lines(('%s/out/%s.%s.tsv'):format(dir, split, lang)) do list[#list + 1] = line:match('^[^\t]*\t[^\t]*') end
    end
    table.sort(list)
    return list
  end
  after_each(function() shell.remove(dir) end)

  it('reads TSV in both column orders, and aligned files, gzip too', function()
    local gz = directory { a = 'Uno\nDue\n' }
    os.execute(('gzip -n %s/a'):format(gz))
    local manifest = run {
      ['de.tsv'] = 'Good morning\tGuten Morgen\tignored\r\n', ['fr-en.tsv'] = 'Bonjour\tGood morning\n',
      ['news.en'] = 'One\nTwo', ['news.it.gz'] = shell.read(gz .. '/a.gz'), ['notes.md'] = 'x',
    }
    shell.remove(gz)
    assert.same({ 'de', 'fr', 'it' }, manifest.langs)
    assert.same({ 'Good morning\tGuten Morgen' }, all 'de')
    assert.same({ 'Good morning\tBonjour' }, all 'fr')
    assert.same({ 'One\tUno', 'Two\tDue' }, all 'it')
    assert.equal('not a parallel text', manifest.skipped['notes.md'])
  end)

  it('counts and reports bad lines with file and line, and goes on', function()
    local manifest = run {
      ['de.tsv'] = 'one\teins\nno tab\n\tleer\ntwo\t \ncaf\233\tKaffee\nthree\tdrei\nthree\tdrei\n',
      ['x.en'] = 'a\nb\nc\n', ['x.fr'] = 'A\n',
    }
    assert.same({ 'one\teins', 'three\tdrei' }, all 'de')
    assert.same({ columns = 1, empty = 2, utf8 = 1 }, manifest.skipped['de.tsv'])
    assert.same({ unequal = 2 }, manifest.skipped['x.fr'])
    assert.same({
      'de.tsv:2: no tab; wanted two columns', 'de.tsv:3: the English side is empty', 'de.tsv:4: the de side is empty',
      'de.tsv:5: not UTF-8: byte 0xE9', 'x.en:2: 2 lines more than x.fr',
    }, manifest.problems)
    assert.equal('skipped de.tsv:2: no tab; wanted two columns', messages[1])
    assert.equal('skipped of de.tsv in all: columns 1, empty 2, utf8 1', messages[5])
    assert.equal('skipped of x.fr in all: unequal 2', messages[7])
  end)

  it('says which language it found nothing for, without sending to other sources', function()
    run({ ['de.tsv'] = 'one\teins\n' }, { langs = { 'de', 'fr' } })
    assert.equal('no pairs for fr', messages[1])
  end)

  it("uses the user's test file as it is, and keeps its English out of training in every language", function()
    run {
      ['test.de.tsv'] = 'The red house\tDas rote Haus\nThe red house\tDas rote Haus\n',
        ['de.tsv'] = 'A cat\tEine Katze\nthe Red house!\tx\n',
      ['fr.tsv'] = 'The red house.\tLa maison rouge\nA cat\tUn chat\n',
    }
    assert.equal(('The red house\tDas rote Haus\ttest.de.tsv\t0.00\n'):rep(2), shell.read(dir .. '/out/test.de.tsv'))
    assert.same({ 'A cat\tUn chat' }, all 'fr')
  end)

  it('prepares again when a file changed, and not otherwise', function()
    local manifest = run { ['de.tsv'] = 'one\teins\n' }
    shell.write(dir .. '/out/train.de.tsv', 'mark')
    local again = { from = dir, dir = dir .. '/out', report = quiet }
    assert.same(manifest.langs, prepare.run(again).langs)
    assert.equal('mark', shell.read(dir .. '/out/train.de.tsv'))
    shell.write(dir .. '/de.tsv', 'one\teins\ntwo\tzwei\n')
    prepare.run(again)
    assert.same({ 'one\teins', 'two\tzwei' }, all 'de')
  end)

  it('says what it wants', function()
    assert.error_matches(function() run { ['notes.md'] = 'x' } end, 'no parallel texts there; give TSV files')
    assert.error_matches(function() prepare.run { from = '/nonexistent', report = quiet } end, '/nonexistent: no such directory')
    assert.error_matches(function() prepare.run { form = 'x' } end, "no option 'form'")
    assert.error_matches(function() run { ['de.tsv'] = '', ['fr.tsv'] = 'junk' } end, 'no pairs of any language in ')
    assert.equal('xx', run({ ['xx.tsv'] = 'one\tun\n' }).langs[1]) -- one's own may be any
    assert.error_matches(function() run { ['de.tsv.gz'] = '\31\139\8\0cut' } end, 'de.tsv.gz: damaged')
  end)
end)
