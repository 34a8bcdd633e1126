local evaluate = require 'repl.evaluate'

describe('repl.evaluate', function()
  local function run(source)
    return evaluate.run(assert(evaluate.compile(source)))
  end

  it('takes expressions first, then statements', function()
    assert.same({ ok = true, n = 1, 3 }, run '1 + 2')
    assert.same({ ok = true, n = 0 }, run 'local x = 1')
    assert.same({ ok = true, n = 3, 1, nil, 3 }, run '1, nil, 3')
    assert.same({ ok = true, n = 1, 5 }, run '= 5 -- a remark')
    assert.same({ ok = true, n = 1, 5 }, run '5;')
  end)

  it('asks for more only where the text ends too early', function()
    local unfinished = { 'for i = 1, 2 do', 'f(', '{ 1,', 'x =', '1 +', '[[long', "'goes on\\", '--[[ remark', 'if x' }
    for _, source in ipairs(unfinished) do
      local chunk, message, more = evaluate.compile(source)
      assert.is_nil(chunk)
      assert.is_string(message)
      assert.is_true(more, source)
    end
    for _, source in ipairs { 'x = "open', 'end', '1 + + 2', 'for for', 'x y', "f('<eof>' 1)", 'x = )' } do
      local chunk, _, more = evaluate.compile(source)
      assert.is_nil(chunk)
      assert.is_false(more, source)
    end
  end)

  it('blames the expression where the statement says nothing', function()
    assert.equal("stdin:1: unexpected symbol near '+'", (select(2, evaluate.compile '1 + + 2')))
    assert.matches("near 'do'", (select(2, evaluate.compile 'for i = 1 do end')))
  end)

  it('gives the line and the traceback without its own frames', function()
    local result = run 'error "boom"'
    assert.is_false(result.ok)
    local traceback = "stack traceback:\n\t[C]: in function 'error'\n\tstdin:1: in main chunk"
    assert.equal('stdin:1: boom\n' .. traceback, result.message)
    assert.matches('^stdin:2: boom\n', run('f = function()\nerror "boom" end\nf()').message)
  end)

  it('names error values that are no strings', function()
    assert.matches('^%(error object is a table value%)', run('error {}').message)
    assert.matches('^%(error object is a nil value%)', run('error()').message)
    local object = 'setmetatable({}, { __tostring = function() return "readable" end })'
    assert.matches('^readable\n', run('error(' .. object .. ')').message)
  end)

  it('survives an endless recursion', function()
    assert.matches('stack overflow', run('local function f() return 1 + f() end f()').message)
  end)
end)
