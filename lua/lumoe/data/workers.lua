--- Independent tasks on several processes.
-- Workers are forked, so they share what the parent has read so far. The numbers of the tasks wait in one pipe from
-- which idle workers take the next; each worker answers through its own pipe, one JSON line a task. Nothing else is
-- shared, so results cannot depend on how many workers there are.
local cjson = require 'cjson'
local status = require 'lumoe.status'

local workers = {}

local function serve(queue, answers, work)
  local unistd = require 'posix.unistd'
  local function send(message)
    local line, at = cjson.encode(message) .. '\n', 1
    while at <= #line do
      local sent = unistd.write(answers, line:sub(at))
      if not sent then unistd._exit(1) end
      at = at + sent
    end
  end
  while true do
    local ticket = unistd.read(queue, 4)
    if not ticket or #ticket < 4 then break end
    local task = tonumber(ticket)
    local ok, result = xpcall(function() return work(task) end, function(err)
      return type(err) == 'string' and err or tostring(err)
    end)
    if not ok then
      send { error = result, refusal = status.is_refusal(result) }
      unistd._exit(1)
    end
    send { task = task, result = result }
  end
  unistd._exit(0)
end

local function run_inline(options)
  for task = 1, options.tasks do options.done(task, options.work(task)) end
end

local function start(options, queue_in, queue_out)
  local unistd = require 'posix.unistd'
  local answer_in, answer_out = unistd.pipe()
  io.stdout:flush()
  io.stderr:flush()
  local pid = assert(unistd.fork())
  if pid == 0 then
    unistd.close(queue_out)
    unistd.close(answer_in)
    serve(queue_in, answer_out, options.work)
  end
  unistd.close(answer_out)
  return { pid = pid, fd = answer_in, buffer = '' }
end

---@param options { jobs: integer, tasks: integer, work: (fun(task: integer): any), done: (fun(task: integer, result: any)) }
--- `work` runs in a worker and returns something that JSON can say; `done` is called in the parent, in order of
-- completion.
--- An error in a worker is raised here, after the other workers have been stopped.
function workers.run(options)
  if options.tasks > 9999 then error('workers: more than 9999 tasks', 0) end
  local jobs = math.min(options.jobs, options.tasks)
  if jobs <= 1 then return run_inline(options) end

  local unistd, poll = require 'posix.unistd', require 'posix.poll'
  local wait, signal = require 'posix.sys.wait', require 'posix.signal'
  local queue_in, queue_out = unistd.pipe()
  local running, by_fd = {}, {}
  local function write_queue()
    -- 9999 tickets of 4 bytes fit into a pipe (64 KiB), so this cannot block
    for task = 1, options.tasks do unistd.write(queue_out, ('%4d'):format(task)) end
    unistd.close(queue_out)
  end
  local failure, refusal
  for _ = 1, jobs do
    local worker = start(options, queue_in, queue_out)
    running[worker.fd] = worker
    by_fd[worker.fd] = { events = { IN = true } }
  end
  write_queue()
  unistd.close(queue_in)

  local function receive(worker)
    local bytes = unistd.read(worker.fd, 65536)
    if bytes and #bytes > 0 then
      worker.buffer = worker.buffer .. bytes
      while true do
        local line, rest = worker.buffer:match('^([^\n]*)\n(.*)$')
        if not line then return end
        worker.buffer = rest
        local message = cjson.decode(line)
        if not message.error then options.done(message.task, message.result)
        elseif not failure then failure, refusal = message.error, message.refusal end
      end
    end
    unistd.close(worker.fd)
    running[worker.fd], by_fd[worker.fd] = nil, nil
    local _, how, code = wait.wait(worker.pid)
    if code ~= 0 and not failure then
      failure = ('a worker process ended early (%s %s)%s'):format(how, code, how == 'killed' and code == 9 and '; out of memory?' or '')
    end
  end

  while next(running) do
    poll.poll(by_fd, -1)
    for fd, state in pairs(by_fd) do
      if state.revents and (state.revents.IN or state.revents.HUP or state.revents.ERR) then
        receive(running[fd])
        break -- by_fd may have changed
      end
    end
    if failure then
      for _, worker in pairs(running) do
        signal.kill(worker.pid, signal.SIGKILL)
        wait.wait(worker.pid)
        unistd.close(worker.fd)
      end
      if refusal then status.refuse('%s', failure) end
      error(failure, 0)
    end
  end
end

return workers
