-- Tokenizers: trained here, or by SentencePiece's own package (tests/fixtures/sentencepiece/make.py).
local cjson = require 'cjson'
local lfs = require 'lfs'
local stream = require 'lumoe.data.stream'
local text = require 'lumoe.text'

local fixtures = 'tests/fixtures/sentencepiece/'
local dir = os.tmpname()
os.remove(dir)
lfs.mkdir(dir)

local function write(name, content)
  local path = dir .. '/' .. name
  local file = assert(io.open(path, 'wb'))
  file:write(content)
  file:close()
  return path
end

local function read(path)
  local file = assert(io.open(path, 'rb'))
  local content = file:read '*a'
  file:close()
  return content
end

-- Sentences of four languages, put together from words: enough for a vocabulary, the same everywhere.
local WORDS = {
  en = { 'the', 'open', 'window', 'shows', 'every', 'letter', 'in', 'a', 'small', 'garden', 'file' },
  de = { 'das', 'geöffnete', 'Fenster', 'zeigt', 'jeden', 'Brief', 'in', 'einem', 'größeren', 'Garten' },
  ru = { 'открытое', 'окно', 'показывает', 'каждое', 'письмо', 'в', 'саду', 'файл', 'это' },
  ja = { '開いた', '窓は', 'すべての', '手紙を', '小さな', '庭で', '表示します', 'ファイル', 'この' },
}

local function sentence(language, i)
  local words, out, x = WORDS[language], {}, i * 7919 + 13
  for k = 1, 3 + i % 6 do
    x = (x * 1103 + 12345) % 1000003
    out[k] = words[x % #words + 1]
  end
  return table.concat(out, language == 'ja' and '' or ' ') .. (language == 'ja' and '。' or '.')
end

local function tsv(language, rows)
  local lines = {}
  for i = 1, rows do lines[i] = sentence('en', i) .. '\t' .. sentence(language, i) .. '\ttest\n' end
  return table.concat(lines)
end

local files, tok = {}, nil
local SYMBOLS = { '<2en>', '<2de>', '<2ru>', '<2ja>', '<mask>' }

local function train(name, changes)
  local columns = {}
  for _, language in ipairs { 'de', 'ru', 'ja' } do
    columns[#columns + 1] = { files[language], 1 }
    columns[#columns + 1] = { files[language], 2 }
  end
  local opts = { model = dir .. '/' .. name, columns = columns, symbols = SYMBOLS, vocab_size = 220 }
  opts.coverage = 1
  for key, value in pairs(changes or {}) do opts[key] = value end
  return text.train(opts)
end

setup(function()
  for _, language in ipairs { 'de', 'ru', 'ja' } do
    files[language] = write(language .. '.tsv', tsv(language, 700))
  end
  tok = train 'four.model'
end)

teardown(function() os.execute('rm -r ' .. dir) end)

describe('text.train', function()
  it('puts pad, unk, bos, eos and the symbols first', function()
    assert.same({ 0, 1, 2, 3 }, { tok.pad, tok.unk, tok.bos, tok.eos })
    for i, symbol in ipairs(SYMBOLS) do assert.equal(i + 3, tok:id(symbol)) end
    assert.equal(220, tok.size)
  end)

  it('makes the same file of the same text', function()
    train 'again.model'
    assert.equal(read(dir .. '/four.model'), read(dir .. '/again.model'))
  end)

  it('samples evenly, by the seed', function()
    local _, all = train 'all.model'
    local one, n = train('one.model', { sample = 1200, seed = 1 })
    local same = train('same.model', { sample = 1200, seed = 1 })
    local other = train('other.model', { sample = 1200, seed = 2 })
    assert.equal(6 * 700, all)
    assert.equal(1200, n)
    assert.equal(one.hash, same.hash)
    assert.not_equal(one.hash, other.hash)
  end)

  it('gives what a short column lacks to the others', function()
    local short = write('short.tsv', tsv('de', 100))
    for _, temperature in ipairs { 1, 100 } do
      local columns = { { short, 1 }, { files.de, 1 } }
      local _, n = text.train {
        model = dir .. '/t.model', vocab_size = 80, columns = columns, sample = 400,
        temperature = temperature,
      }
      assert.equal(400, n)
    end
  end)

  it('trains unigrams, from lines', function()
    local lines = {}
    for i = 1, 500 do lines[i] = sentence('de', i) end
    local model = dir .. '/uni.model'
    local uni, n = text.train { model = model, type = 'unigram', vocab_size = 30, lines = lines }
    assert.equal(500, n)
    assert.equal(lines[7], uni:decode(uni:encode(lines[7])))
  end)

  it('says what is wrong', function()
    local function fails(pattern, opts)
      opts.model, opts.vocab_size = opts.model or dir .. '/never.model', opts.vocab_size or 12
      assert.error_matches(function() text.train(opts) end, pattern)
      assert.is_nil(lfs.attributes(opts.model))
    end
    fails("no option 'vocab'", { vocab = 100, lines = { 'a' } })
    fails('either `columns` or `lines`', {})
    fails('no sentence to train on', { lines = {} })
    fails('nowhere.tsv: No such file', { columns = { { dir .. '/nowhere.tsv', 1 } } })
    fails('Vocabulary size too high', { vocab_size = 5000, type = 'unigram', lines = { 'a b c', 'd e f' } })
    fails("symbol 'a,b'", { lines = { 'a' }, symbols = { 'a,b' } })
    fails('cannot write it', { model = dir .. '/no/where.model', lines = { 'abc abd acd bcd' } })
  end)
end)

describe('a tokenizer', function()
  it('gives back German, Russian and Japanese', function()
    for _, language in ipairs { 'en', 'de', 'ru', 'ja' } do
      for i = 1, 40 do
        local s = sentence(language, i)
        assert.equal(s, tok:decode(tok:encode(s)))
      end
    end
    assert.same({}, tok:encode '')
    assert.equal('', tok:decode {})
  end)

  it('never takes text for a symbol, and shows none', function()
    for _, id in ipairs(tok:encode 'a <mask> <2de> b') do
      assert.is_true(id == tok.unk or id >= 4 + #SYMBOLS)
    end
    local ids = tok:encode 'small garden'
    table.insert(ids, 1, tok:id '<2de>')
    ids[#ids + 1] = tok.eos
    ids[#ids + 1] = tok.pad
    assert.equal('small garden', tok:decode(ids))
  end)

  it('knows its pieces', function()
    for id = 0, tok.size - 1 do assert.equal(id, tok:id(tok:piece(id))) end
    assert.is_nil(tok:id 'no such piece')
    assert.error_matches(function() tok:piece(tok.size) end, 'id 220, but the vocabulary has 220')
    assert.error_matches(function() tok:decode { 5, -1 } end, 'id %-1 at 1')
  end)

  it('takes text that is not UTF-8', function()
    assert.is_true(#tok:encode 'a\255\254b' > 0)
    assert.is_true(#tok:encode 'zero \0 byte' > 0)
  end)
end)

describe('encode_tsv', function()
  it('writes what encode says, column by column, whatever the threads', function()
    local path = files.ru
    local made = tok:encode_tsv(path, { dir .. '/a1', dir .. '/a2' }, { threads = 1 })
    tok:encode_tsv(path, { dir .. '/b1', dir .. '/b2' }, { threads = 3 })
    assert.equal(read(dir .. '/a1'), read(dir .. '/b1'))
    assert.equal(read(dir .. '/a2'), read(dir .. '/b2'))
    assert.equal(700, made[1].sentences)
    for _, i in ipairs { 1, 2, 350, 700 } do
      assert.same(tok:encode(sentence('en', i)), made[1]:read(i - 1))
      assert.same(tok:encode(sentence('ru', i)), made[2]:read(i - 1))
    end
  end)

  it('keeps the order over many blocks', function()
    local lines = {}
    for i = 1, 20011 do lines[i] = sentence('en', i) end
    local path = write('long.txt', table.concat(lines, '\n')) -- no newline at the end
    local one = tok:encode_tsv(path, { dir .. '/long' }, { threads = 3 })[1]
    assert.equal(20011, one.sentences)
    local total = 0
    for i = 1, 20011 do
      local ids = tok:encode(lines[i])
      total = total + #ids
      if i % 997 == 0 then assert.same(ids, one:read(i - 1)) end
    end
    assert.equal(total, one.tokens)
  end)

  it('keeps empty lines and missing columns as empty sentences', function()
    local path = write('gaps.tsv', 'open\tgarden\r\n\nletter\n\twindow\n')
    local made = tok:encode_tsv(path, { dir .. '/g1', dir .. '/g2' })
    assert.same({ tok:encode 'open', {}, tok:encode 'letter', {} },
      { made[1]:read(0), made[1]:read(1), made[1]:read(2), made[1]:read(3) })
    assert.same({ tok:encode 'garden', {}, {}, tok:encode 'window' },
      { made[2]:read(0), made[2]:read(1), made[2]:read(2), made[2]:read(3) })
    assert.equal(0, tok:encode_tsv(write('empty.tsv', ''), { dir .. '/e1' })[1].sentences)
  end)

  it('reads gzip as it reads text, and says what is damaged', function()
    local plain = tok:encode_tsv(files.ru, { dir .. '/p1', dir .. '/p2' })
    local function gzip(content)
      local path = write('packed', content)
      assert.equal(0, os.execute('gzip -kf ' .. path))
      return read(path .. '.gz')
    end
    local rows, half = read(files.ru), 0
    for _ = 1, 350 do half = rows:find('\n', half + 1, true) end
    local first = gzip(rows:sub(1, half))
    local path = write('ru.tsv.gz', first .. gzip(rows:sub(half + 1))) -- two members, one after the other
    local made, new = tok:encode_tsv(path, { dir .. '/z1', dir .. '/z2' })
    assert.is_true(new)
    for column = 1, 2 do
      assert.equal(700, made[column].sentences)
      for i = 0, 699, 33 do assert.same(plain[column]:read(i), made[column]:read(i)) end
    end
    assert.is_false((select(2, tok:encode_tsv(path, { dir .. '/z1', dir .. '/z2' })))) -- nothing to do again
    local function trained_on(of)
      return text.train({ model = dir .. '/z.model', vocab_size = 60, columns = { { of, 1 } } }).hash
    end
    assert.equal(trained_on(files.ru), trained_on(path))
    local cut = write('cut.tsv.gz', first:sub(1, -30))
    assert.error_matches(function() tok:encode_tsv(cut, { dir .. '/cut' }) end, 'cut.tsv.gz: damaged: ')
    assert.equal(0, tok:encode_tsv(write('none.gz', gzip ''), { dir .. '/none' })[1].sentences)
  end)

  it('does again only what has changed', function()
    local path = write('twice.tsv', 'open\tgarden\n')
    local outputs = { dir .. '/t1', dir .. '/t2' }
    local function encoded(tokenizer, opts) return (select(2, tokenizer:encode_tsv(path, outputs, opts))) end
    assert.is_true(encoded(tok))
    assert.is_false(encoded(tok))
    assert.is_true(encoded(tok, { force = true }))
    os.remove(outputs[2])
    assert.is_true(encoded(tok))
    write('twice.tsv', 'open\tgardens\n')
    assert.is_true(encoded(tok))
    assert.is_true(encoded(text.load(fixtures .. 'bpe.model')))
    assert.is_true(encoded(tok))
    write('t1', 'rubbish')
    assert.is_true(encoded(tok))
    outputs[1], outputs[2] = outputs[2], outputs[1]
    assert.is_true(encoded(tok))
  end)

  it('names the file that fails, and leaves nothing half made', function()
    local function fails(pattern, path, outputs)
      assert.error_matches(function() tok:encode_tsv(path, outputs) end, pattern)
    end
    fails('none.tsv: No such file', dir .. '/none.tsv', { dir .. '/x' })
    fails('no/x: cannot write it', files.de, { dir .. '/no/x' })
    fails('no/x: cannot write it', files.de, { dir .. '/y', dir .. '/no/x' })
    for name in lfs.dir(dir) do assert.is_nil(name:match '%.part$') end
    assert.is_nil(lfs.attributes(dir .. '/y'))
  end)

  it('is the same with the JIT off', function()
    local on = tok:encode_tsv(files.ja, { dir .. '/on1', dir .. '/on2' }, { force = true })
    jit.off()
    jit.flush()
    local off = tok:encode_tsv(files.ja, { dir .. '/off1', dir .. '/off2' }, { force = true })
    local sentences = {}
    for i = 0, 699 do sentences[i] = off[2]:read(i) end
    jit.on()
    assert.equal(read(dir .. '/on1'), read(dir .. '/off1'))
    assert.equal(read(dir .. '/on2'), read(dir .. '/off2'))
    for i = 0, 699 do assert.same(sentences[i], on[2]:read(i)) end
  end)
end)

describe("a model of SentencePiece's own package", function()
  local file = assert(io.open(fixtures .. 'cases.json'))
  local cases = cjson.decode(file:read '*a')
  file:close()

  for _, name in ipairs { 'unigram', 'bpe' } do
    it('encodes and decodes as there: ' .. name, function()
      local case, foreign = cases[name], text.load(fixtures .. name .. '.model')
      assert.equal(case.size, foreign.size)
      for _, special in ipairs { 'unk', 'bos', 'eos', 'pad' } do
        assert.equal(case[special] >= 0 and case[special] or nil, foreign[special])
      end
      for piece, id in pairs(case.pieces) do
        if id ~= case.unk then assert.equal(id, foreign:id(piece)) else assert.is_nil(foreign:id(piece)) end
      end
      for _, s in ipairs(case.sentences) do
        assert.same(s.ids, foreign:encode(s.text))
        assert.equal(s.back, foreign:decode(s.ids))
      end
    end)
  end
end)

describe('text.load', function()
  it('refuses what is no whole model, by name', function()
    local whole = read(fixtures .. 'bpe.model')
    local function fails(pattern, path) assert.error_matches(function() text.load(path) end, pattern) end
    fails('none.model: No such file', dir .. '/none.model')
    fails('foreign.model: not a SentencePiece model', write('foreign.model', 'Some other file.\n'))
    fails('empty.model: not a SentencePiece model', write('empty.model', ''))
    for cut = 1, #whole - 1, 37 do fails('cut.model: ', write('cut.model', whole:sub(1, cut))) end
    fails('a path, not a nil', nil)
  end)

  it('refuses a stream, and a model is no stream', function()
    assert.error_matches(function() stream.open(fixtures .. 'bpe.model') end, 'bpe.model: not a token stream')
  end)
end)
