std = 'luajit'
max_line_length = 140
max_string_line_length = false
max_comment_line_length = false
files['tests'] = { std = '+busted' }
