#!/usr/bin/env python3
"""One MoE layer of PyTorch's world: forward, backward, AdamW (fused). job['model'] is one of
    hf_grouped      Hugging Face's Mixtral block, as it is by default
    hf_eager        the same, its experts one after the other
    loop            by hand: for each expert, its tokens by index, two products, added back by index
    grouped         by hand: tokens sorted by expert, F.grouped_mm
    .._compiled     the same, what is between the products compiled
    ds_rts, ds      DeepSpeed's layer with capacity 1.25; with Random Token Selection, which it has for top 1, and without
    ds_nodrop       DeepSpeed's layer, padded to the busiest expert
bf16 means bf16 parameters and optimizer state, PyTorch's fastest form.
The job's routing (../routing.lua): 10 is added to the logits of the experts that it names.
"""
import os
import socket
import torch
import torch.nn as nn
import torch.nn.functional as F
from serve import serve

DTYPE = {'f32': torch.float32, 'bf16': torch.bfloat16}


def relu(h): return F.relu(h)


def swiglu(h):
    gate, up = h.chunk(2, -1)
    return F.silu(gate) * up


compilations = {f: torch.compile(f, dynamic=True) for f in (relu, swiglu)}


def compiled(f, width, dtype):
    """f compiled, both ways, for any number of rows."""
    f = compilations[f]
    for rows in (24, 40):
        f(torch.randn(rows, width, dtype=dtype, requires_grad=True)).sum().backward()
    return f


def preference(job):
    table = torch.zeros(job['tokens'], job['experts'])
    return table.scatter_(1, torch.tensor(job['ids']).view(job['tokens'], job['top_k']), 10.0)


class Router(nn.Module):
    """As Mixtral's, in Transformers 5.23."""

    def __init__(self, job):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(job['experts'], job['dim']) * job['dim'] ** -0.5)
        self.register_buffer('preferred', preference(job))
        self.top_k = job['top_k']

    def forward(self, x):
        logits = F.linear(x, self.weight) + self.preferred
        value, ids = torch.topk(logits.float().softmax(-1), self.top_k, dim=-1)
        return logits, (value / value.sum(-1, keepdim=True)).to(x.dtype), ids


class Loop(nn.Module):
    def __init__(self, job, activation):
        super().__init__()
        self.router, self.activation = Router(job), activation
        dim, hidden, wide = job['dim'], job['hidden'], 2 if job['activation'] == 'swiglu' else 1
        self.up = nn.ParameterList(torch.randn(wide * hidden, dim) * dim ** -0.5 for _ in range(job['experts']))
        self.down = nn.ParameterList(torch.randn(dim, hidden) * hidden ** -0.5 for _ in range(job['experts']))

    def forward(self, x):
        _, weights, ids = self.router(x)
        y = torch.zeros_like(x)
        for e, (up, down) in enumerate(zip(self.up, self.down)):
            token, slot = (ids == e).nonzero(as_tuple=True)
            if len(token) > 0:
                h = self.activation(F.linear(x.index_select(0, token), up))
                y = y.index_add(0, token, F.linear(h, down) * weights[token, slot, None])
        return y


class Grouped(nn.Module):
    def __init__(self, job, activation):
        super().__init__()
        self.router, self.activation = Router(job), activation
        self.experts, self.top_k = job['experts'], job['top_k']
        dim, hidden, wide = job['dim'], job['hidden'], 2 if job['activation'] == 'swiglu' else 1
        self.up = nn.Parameter(torch.randn(self.experts, dim, wide * hidden) * dim ** -0.5)
        self.down = nn.Parameter(torch.randn(self.experts, hidden, dim) * hidden ** -0.5)

    def forward(self, x):
        _, weights, ids = self.router(x)
        ids = ids.reshape(-1)
        order = ids.argsort(stable=True)
        token = order // self.top_k
        ends = torch.bincount(ids, minlength=self.experts).cumsum(0).to(torch.int32)
        h = self.activation(F.grouped_mm(x.index_select(0, token), self.up, offs=ends))
        y = F.grouped_mm(h, self.down, offs=ends) * weights.reshape(-1)[order, None]
        return torch.zeros_like(x).index_add(0, token, y)


class HuggingFace(nn.Module):
    def __init__(self, job, implementation):
        super().__init__()
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
        config = MixtralConfig(hidden_size=job['dim'], intermediate_size=job['hidden'],
                               num_local_experts=job['experts'], num_experts_per_tok=job['top_k'])
        config._experts_implementation = implementation
        self.block = MixtralSparseMoeBlock(config)
        self.block.gate = Router(job)
        for p in self.block.parameters():
            nn.init.normal_(p, std=0.02)

    def forward(self, x): return self.block(x[None])[0]


class Expert(nn.Module):
    def __init__(self, job):
        super().__init__()
        self.up = nn.Linear(job['dim'], job['hidden'], bias=False)
        self.down = nn.Linear(job['hidden'], job['dim'], bias=False)

    def forward(self, x): return self.down(F.relu(self.up(x)))


class DeepSpeed(nn.Module):
    def __init__(self, job, rts, drop):
        super().__init__()
        with socket.socket() as free:  # a port that nobody has
            free.bind(('127.0.0.1', 0))
            port = str(free.getsockname()[1])
        for key, value in dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, RANK='0', LOCAL_RANK='0', WORLD_SIZE='1',
                               LOCAL_SIZE='1', DS_ACCELERATOR='cpu').items():
            os.environ.setdefault(key, value)
        import deepspeed
        from deepspeed.moe import sharded_moe
        from deepspeed.moe.layer import MoE
        if not deepspeed.comm.is_initialized():
            deepspeed.init_distributed('gloo', verbose=False)
        self.moe = MoE(hidden_size=job['dim'], expert=Expert(job), num_experts=job['experts'], ep_size=1, k=job['top_k'],
                       capacity_factor=1.25, min_capacity=4, drop_tokens=drop, use_rts=rts,
                       top2_2nd_expert_sampling=False)
        self.moe.set_deepspeed_parallelism()
        self.register_buffer('preferred', preference(job))
        self.gating, self.gatings = sharded_moe, {n: getattr(sharded_moe, n) for n in ('top1gating', 'top2gating', 'topkgating')}

    def forward(self, x):
        for name, f in self.gatings.items():  # the gate multiplies by its weight itself; what chooses comes after
            setattr(self.gating, name, lambda logits, *args, f=f, **more: f(logits + self.preferred, *args, **more))
        try:
            return self.moe(x)[0]
        finally:
            for name, f in self.gatings.items():
                setattr(self.gating, name, f)


MODELS = {
    'hf_grouped': lambda job, act: HuggingFace(job, 'grouped_mm'), 'hf_eager': lambda job, act: HuggingFace(job, 'eager'),
    'loop': Loop, 'grouped': Grouped,
    'ds_rts': lambda job, act: DeepSpeed(job, True, True), 'ds': lambda job, act: DeepSpeed(job, False, True),
    'ds_nodrop': lambda job, act: DeepSpeed(job, False, False),
}


def make(job):
    name = job['model'].removesuffix('_compiled')
    activation = {'swiglu': swiglu, 'relu': relu}[job['activation']]
    if job['model'].endswith('_compiled'):
        activation = compiled(activation, job['hidden'] * (2 if activation is swiglu else 1), DTYPE[job['dtype']])
    model = MODELS[name](job, activation)
    model = model.to(DTYPE[job['dtype']]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens, dim, dtype = job['tokens'], job['dim'], DTYPE[job['dtype']]
    given, gradient = torch.randn(tokens, dim, dtype=dtype), torch.randn(tokens, dim, dtype=dtype)

    def step(lap):
        x = given.detach().requires_grad_()  # in a network the layers below want its gradient
        y = model(x)
        lap('forward')
        y.backward(gradient)
        lap('backward')
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lap('update')

    return step, dict(parameters=sum(p.numel() for p in model.parameters()))


serve(make)
