"""A peer that takes turns (the protocol is in ../turns.lua): jobs come as `job FILE`, one after the other."""
import ctypes, gc, json, os, resource, sys, time, traceback

answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)  # what libraries print is no answer
import torch


def say(**record): print(json.dumps(record), file=answers, flush=True)


def rss():
    """The most memory this process ever had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget():
    """Gives back to the system what nothing refers to any more, so that the next program has room beside this one."""
    if 'torch._dynamo' in sys.modules:
        torch._dynamo.reset()  # what was compiled holds its parameters
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def serve(make):
    """make(job) -> step, about. step(lap) does one step, and may return numbers; lap(name) names what was done since the
    last one, and its ms become a list of the answer."""
    say(torch=torch.__version__)
    step = None
    for line in sys.stdin:
        line = line.strip()
        if line == 'end':
            break
        try:
            if line.startswith('job '):
                step = None
                forget()
                job = json.load(open(line[4:]))
                torch.manual_seed(1)
                torch.set_num_threads(job['threads'])
                step, about = make(job)
                say(**about)
            elif line == 'drop':
                step = None
                forget()
                say()
            else:
                say(**turn(step, int(line)))
        except Exception as e:  # a peer that cannot do a job may do the next
            traceback.print_exc()
            step = None
            say(error=f'{type(e).__name__}: {e}')


def turn(step, n):
    answer, more = {'ms': []}, None
    for _ in range(n):
        begun = last = time.perf_counter()

        def lap(name):
            nonlocal last
            now = time.perf_counter()
            answer.setdefault(name, []).append((now - last) * 1e3)
            last = now
        more = step(lap) or more
        answer['ms'].append((time.perf_counter() - begun) * 1e3)
    return {**answer, 'rss': rss(), **(more or {})}
