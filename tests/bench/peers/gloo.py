#!/usr/bin/env python3
"""PyTorch's collectives over gloo; rank 0 prints the times as a line of JSON. Arguments: the number of ranks, then those of
../programs/exchange.lua, which says what is measured."""
import json, os, socket, statistics, sys, time
import torch, torch.distributed as dist, torch.multiprocessing as mp


def shares(count, n, zipf):
    total = sum(1 / (r + 1) if zipf else 1 for r in range(n))
    return [int(count * 4 * (1 / (r + 1) if zipf else 1) / total / 4096) * 1024 for r in range(n)]


def collective(name, count, rank, n):
    data = torch.zeros(count)
    if name.startswith('all_to_all'):
        sends = shares(count, n, name.endswith('zipf'))
        data, out = torch.zeros(sum(sends)), torch.zeros(sends[rank] * n)
        return lambda: dist.all_to_all_single(out, data, [sends[rank]] * n, sends)
    if name == 'all_reduce':
        return lambda: dist.all_reduce(data)
    part = torch.zeros(count // n)
    if name == 'reduce_scatter':
        return lambda: dist.reduce_scatter_tensor(part, data)
    return lambda: dist.all_gather_into_tensor(data, part)


def timed(run):
    dist.barrier()
    begun = time.perf_counter()
    run()
    ms = torch.tensor([(time.perf_counter() - begun) * 1e3], dtype=torch.float64)
    dist.all_reduce(ms, dist.ReduceOp.MAX)
    return ms.item()


def work(rank, n, port, seconds, specs):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), GLOO_SOCKET_IFNAME='lo')
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=n)
    results = []
    for spec in specs:
        name, _, size = spec.split()
        run = collective(name, int(size) // 4, rank, n)
        try:
            once = max(timed(run), timed(run))
        except RuntimeError as e:  # what it does not have, no rank has
            print(f'{spec}: {e}', file=sys.stderr)
            results.append(None)
            continue
        results.append(statistics.median(timed(run) for _ in range(max(5, min(200, int(seconds * 1e3 / once))))))
    if rank == 0:
        print(json.dumps(results), flush=True)
    dist.destroy_process_group()


if __name__ == '__main__':
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.spawn(work, args=(int(sys.argv[1]), port, float(sys.argv[2]), sys.argv[3:]), nprocs=int(sys.argv[1]))
