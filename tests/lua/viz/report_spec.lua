local metrics = require 'lumoe.metrics'
local viz = require 'lumoe.viz'
local gnuplot = require 'lumoe.viz.gnuplot'

local function page(opts)
  opts.out = os.tmpname()
  viz.report(opts)
  local file = assert(io.open(opts.out))
  local html = file:read '*a'
  file:close()
  os.remove(opts.out)
  return html
end

-- Every element that is opened is closed, in order.
local function assert_well_formed(html)
  local open, void = {}, { meta = true, ['!DOCTYPE'] = true, br = true }
  html = html:gsub('<style>.-</style>', ''):gsub('<!%-%-.-%-%->', '')
  for close, name, rest in html:gmatch '<(/?)([%a!][%w]*)([^>]*)>' do
    if close == '/' then
      assert.equal(name, table.remove(open))
    elseif not void[name] and rest:sub(-1) ~= '/' then
      open[#open + 1] = name
    end
  end
  assert.same({}, open)
end

local TEXTS = { 'Open the file and save it.', 'The cat sat on the mat today.' }

describe('report', function()
  it('holds everything in one file', function()
    local html = page {
      title = 'A run', about = 'of 3 steps',
      config = { langs = 'de,fr', experts = 8, ['top-k'] = 2, rts = true },
      scores = {
        metrics.evaluate { direction = 'de-en', hyps = TEXTS, refs = TEXTS, novel = { true, false } },
        metrics.evaluate { direction = 'fr-en', hyps = TEXTS, refs = TEXTS },
      },
      curves = { { title = 'Loss', series = { { x = { 1, 2, 3 }, y = { 3, 2, 1 } } } } },
      heatmaps = {
        {
          title = 'encoder.1', rows = { 'de', 'fr' }, cols = { 0, 1 }, values = { { 1, 3 }, { 0, 5 } },
          normalize = 'rows',
        },
      },
      tables = { { title = 'Layers', heading = { 'layer', 'dead' }, rows = { { 'encoder.1', 1 } } } },
      samples = { { direction = 'de-en', source = 'Öffnen', hypothesis = 'Open', reference = 'Open it' } },
    }
    assert_well_formed(html)
    assert.matches('<title>A run</title>', html)
    for _, text in ipairs {
      'of 3 steps', '<td>de%-en</td>', '<tr class="mean"><td>mean → en</td>', 'tok:13a', '<svg',
      'encoder.1',
      'title="de, 1: 75">75</td>', 'title="fr, 0: ·">·</td>', '<th>dead</th>', 'Öffnen',
      '<dt>top%-k</dt><dd>2</dd>',
    } do assert.matches(text, html) end
    assert.not_matches('<script', html)
    assert.not_matches('src=', html)
    assert.not_matches('href="http', html)
    assert.not_matches('<%?xml', html)
    assert.not_matches('<title>[Gg]nuplot', html) -- browsers would show these as tooltips
  end)

  it('escapes what it is given', function()
    local html = page {
      title = '<b>&', config = { ['<k>'] = '"v" & <w>' },
      samples = { { direction = 'de-en', source = '<script>alert(1)</script>', hypothesis = '&quot;' } },
      heatmaps = { { title = '<t>', rows = { '"r"' }, cols = { '<c>' }, values = { { 1 } } } },
    }
    assert_well_formed(html)
    assert.matches('<h1>&lt;b&gt;&amp;</h1>', html)
    assert.matches('&lt;script&gt;alert', html)
    assert.matches('&amp;quot;', html)
    assert.not_matches('<script', html)
    assert.matches('title="&quot;r&quot;, &lt;c&gt;:', html)
  end)

  it('leaves out parts that are not given', function()
    local html = page { scores = {}, curves = {}, samples = {} }
    assert_well_formed(html)
    assert.not_matches('<h2>', html)
  end)

  it('drops the numbers from cells of wide maps, but not from their titles', function()
    local map = { title = 'm', rows = { 'de' }, cols = {}, values = { {} }, normalize = 'rows' }
    for c = 1, 64 do map.cols[c], map.values[1][c] = c - 1, 1 end
    local html = page { heatmaps = { map } }
    assert.matches('title="de, 63: 2"></td>', html)
    assert.matches('<th>5</th><th></th>', html)
  end)

  it('says so where gnuplot is missing, and still writes the rest', function()
    local installed = gnuplot.installed
    gnuplot.installed = function() return false end
    local html = page { title = 'A run', curves = { { series = { { x = { 1 }, y = { 1 } } } } } }
    gnuplot.installed = installed
    assert_well_formed(html)
    assert.is_truthy(html:find('No curves: ' .. gnuplot.MISSING, 1, true))
  end)

  it('refuses unknown parts and paths', function()
    assert.error_matches(function() viz.report { out = 'x', bleu = {} } end, "report: no option 'bleu'")
    assert.error_matches(function() viz.report { out = '/not/there/x.html' } end, 'report: /not/there')
  end)
end)
