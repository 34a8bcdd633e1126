#!/usr/bin/env python3
"""One product of an expert layer in PyTorch (see ../programs/products.lua). job['model']: 'loop', a product for each expert,
into what is there already; 'grouped', F.grouped_mm."""
import torch
import torch.nn.functional as F
from serve import serve


def make(job):
    dtype = {'f32': torch.float32, 'bf16': torch.bfloat16}[job['dtype']]
    experts, inputs, outputs = job['experts'], job['inputs'], job['outputs']
    counts = torch.bincount(torch.tensor(job['ids']), minlength=experts)
    ends, rows = counts.cumsum(0).to(torch.int32), int(counts.sum())
    x, dy = torch.randn(rows, inputs, dtype=dtype), torch.randn(rows, outputs, dtype=dtype)
    w = torch.randn(experts, outputs, inputs, dtype=dtype).transpose(1, 2)
    form = job['form']

    if job['model'] == 'grouped':
        products = {'y': lambda: F.grouped_mm(x, w, offs=ends), 'dx': lambda: F.grouped_mm(dy, w.transpose(1, 2), offs=ends),
                    'dw': lambda: F.grouped_mm(x.t(), dy, offs=ends)}
        run = products[form]
    else:
        parts = list(zip(x.split(counts.tolist()), dy.split(counts.tolist()), w))
        operands = {'y': lambda x, dy, w: (x, w), 'dx': lambda x, dy, w: (dy, w.t()), 'dw': lambda x, dy, w: (x.t(), dy)}[form]
        pairs = [operands(*part) for part in parts]
        results = [torch.empty(p.shape[0], q.shape[1], dtype=dtype) for p, q in pairs]

        def run():
            for (p, q), out in zip(pairs, results):
                torch.mm(p, q, out=out)

    def step(lap):
        with torch.no_grad():
            run()
        lap('product')

    return step, dict(rows=rows)


serve(make)
