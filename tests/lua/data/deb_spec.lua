local deb = require 'lumoe.data.deb'
local shell = require 'lumoe.data.shell'

describe('deb', function()
  local dir, package

  setup(function()
    dir = os.tmpname()
    os.remove(dir)
    shell.mkdir(dir .. '/p/DEBIAN')
    shell.write(dir .. '/p/DEBIAN/control',
      'Package: p\nVersion: 1\nArchitecture: all\nMaintainer: n <n@example.org>\nDescription: d\n')
    shell.mkdir(dir .. '/p/usr/share/' .. ('deep/'):rep(40))
    shell.write(dir .. '/p/usr/share/' .. ('deep/'):rep(40) .. 'page.html', 'long name')
    shell.write(dir .. '/p/usr/share/page.html', ('x'):rep(100000))
    shell.write(dir .. '/p/usr/share/empty.html', '')
    shell.write(dir .. '/p/usr/share/picture.png', ('y'):rep(200000))
    package = dir .. '/p.deb'
    assert.equal(0, shell.lines(('dpkg-deb -b %s/p %s 2>&1 >/dev/null'):format(dir, package)))
  end)
  teardown(function() shell.remove(dir) end)

  it('reads the wanted files, long names too', function()
    local files = deb.read(package, function(path) return path:find('%.html$') ~= nil end)
    assert.equal(('x'):rep(100000), files['usr/share/page.html'])
    assert.equal('', files['usr/share/empty.html'])
    assert.equal('long name', files['usr/share/' .. ('deep/'):rep(40) .. 'page.html'])
    assert.is_nil(files['usr/share/picture.png'])
  end)

  it('names a damaged package', function()
    local broken = dir .. '/broken.deb'
    shell.write(broken, shell.read(package):sub(1, 500))
    assert.error_matches(function() deb.read(broken, function() return true end) end, 'broken.deb: damaged package')
  end)
end)
