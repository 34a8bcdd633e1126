#!/usr/bin/env python3
"""One operation of PyTorch's, many times (see ../programs/ops.lua)."""
import ctypes
import torch
import torch.nn.functional as F
from serve import serve

# Results of some MiB: by itself glibc gives them back to the system and clears new pages for the next, in some runs, which
# takes ten times the operation. We compare operations, so they stay.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
for option in M_TRIM_THRESHOLD, M_MMAP_THRESHOLD:
    ctypes.CDLL(None).mallopt(option, 1 << 30)


def small(job):
    x, row, w = torch.ones(2, 3), torch.ones(3), torch.ones(3, 3)
    x.requires_grad = w.requires_grad = job['recorded']
    ids = torch.tensor([0, 1, 1])
    return {
        'x + 1': lambda: x + 1, 'x + x': lambda: x + x, 'x * row': lambda: x * row, 'relu': lambda: x.relu(),
        'softmax': lambda: x.softmax(-1), 'layer_norm': lambda: F.layer_norm(x, (3,), row, row), 'sum': lambda: x.sum(1),
        'transpose': lambda: x.transpose(0, 1), 'x[1]': lambda: x[1], 'reshape': lambda: x.reshape(3, 2),
        'index_select': lambda: x.index_select(1, ids), 'linear': lambda: F.linear(x, w),
    }[job['op']]


def swiglu(h):
    gate, up = h.chunk(2, -1)
    return F.silu(gate) * up


def large(job):
    dtype = {'f32': torch.float32, 'bf16': torch.bfloat16}[job['dtype']]
    def leaf(*shape): return torch.randn(*shape, dtype=dtype).requires_grad_()
    h, weight, bias = leaf(2048, 256), leaf(1024, 256), leaf(1024)
    wide, scale = leaf(1024, 1024), leaf(256)
    q, logits = leaf(32, 4, 64, 64), leaf(1024, 8000)
    targets, tokens, embeddings = torch.zeros(1024, dtype=torch.long), torch.randint(8000, (2048,)), leaf(8000, 256)
    f = {
        'linear': lambda: F.linear(h, weight, bias), 'add': lambda: wide + wide, 'gelu': lambda: F.gelu(wide),
        'swiglu': lambda: swiglu(wide), 'layer_norm': lambda: F.layer_norm(h, (256,), scale, scale),
        'rms_norm': lambda: F.rms_norm(h, (256,), scale), 'softmax': lambda: wide.softmax(-1),
        'attention': lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True),
        'embedding': lambda: F.embedding(tokens, embeddings), 'cross_entropy': lambda: F.cross_entropy(logits, targets),
    }[job['op']]
    return f, (h, weight, bias, wide, scale, q, logits, embeddings)


def make(job):
    if 'dtype' not in job:
        f, calls = small(job), 4000

        def step(lap):
            for _ in range(calls):
                f()
            return dict(calls=calls)
    else:
        f, leaves = large(job)
        calls, gradient = 1 if job.get('tiny') else 20, torch.ones_like(f().detach())

        def step(lap):
            for _ in range(calls):
                y = f()
                lap('forward')
                y.backward(gradient)
                del y
                for leaf in leaves:
                    leaf.grad = None
                lap('backward')
            return dict(calls=calls)
    return step, {}


serve(make)
