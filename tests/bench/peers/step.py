#!/usr/bin/env python3
"""Training steps of a model in PyTorch, timed when asked (the protocol is in ../spine.lua).

    step.py JOB MODEL        JOB: a file of JSON; MODEL one of
    nllb          Hugging Face's NLLB-MoE of the given sizes, randomly initialised
    nllb_mended   the same, where every expert computes the tokens routed to it and no others
    dense         nn.Transformer of the given sizes
Both: cross-entropy with label smoothing, gradient clipping, fused AdamW; bf16 means bf16 parameters
and optimizer state, which is PyTorch's fastest and smallest form (ours keeps f32 masters).
"""
import json, resource, sys, time
import torch
import torch.nn as nn
import torch.nn.functional as F

job = json.load(open(sys.argv[1]))
job['model'] = sys.argv[2]
torch.manual_seed(1)
torch.set_num_threads(job['threads'])
PAD, VOCAB, DIM = job['pad'], job['vocab'], job['dim']


class Dense(nn.Module):
    """A pre-norm encoder-decoder with one embedding for source, target and output."""

    def __init__(self):
        super().__init__()
        def options(): return dict(d_model=DIM, nhead=job['heads'], dim_feedforward=job['hidden'],
                                   dropout=job['dropout'], batch_first=True, norm_first=True)
        self.embedding = nn.Embedding(VOCAB, DIM, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, 0, DIM ** -0.5)
        self.position = nn.Embedding(128, DIM)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**options()), job['encoder_layers'],
                                             nn.LayerNorm(DIM), enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**options()), job['decoder_layers'],
                                             nn.LayerNorm(DIM))

    def embed(self, ids):
        return self.embedding(ids) * DIM ** 0.5 + self.position(torch.arange(ids.shape[1]))

    def forward(self, src, tgt):
        memory = self.encoder(self.embed(src), src_key_padding_mask=src == PAD)
        causal = torch.full((tgt.shape[1],) * 2, float('-inf'), dtype=memory.dtype).triu(1)
        x = self.decoder(self.embed(tgt), memory, tgt_mask=causal, memory_key_padding_mask=src == PAD)
        return F.linear(x, self.embedding.weight), 0


def each_expert_its_tokens(self, hidden, mask, probabilities):
    """NllbMoeExperts.forward as it was up to Transformers 4. In 5.23 it takes the 0 and 1 of the routing mask
    for ids of experts: expert 0 computes all (token, expert) pairs that are not a first choice."""
    y = torch.zeros_like(hidden)
    for e in range(self.num_experts):
        tokens = probabilities[:, e].nonzero().squeeze(1)
        if len(tokens) > 0:
            y.index_add_(0, tokens, self[f'expert_{e}'](hidden[tokens]) * probabilities[tokens, e, None])
    return y


class Nllb(nn.Module):
    def __init__(self):
        super().__init__()
        from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration
        if job['model'] == 'nllb_mended':
            from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeExperts
            NllbMoeExperts.forward = each_expert_its_tokens
        self.model = NllbMoeForConditionalGeneration(NllbMoeConfig(
            vocab_size=VOCAB, d_model=DIM, encoder_layers=job['encoder_layers'], decoder_layers=job['decoder_layers'],
            encoder_attention_heads=job['heads'], decoder_attention_heads=job['heads'],
            encoder_ffn_dim=job['hidden'], decoder_ffn_dim=job['hidden'], encoder_sparse_step=2, decoder_sparse_step=2,
            num_experts=job['experts'], expert_capacity=1 << 20,  # dropless, as ours
            dropout=job['dropout'],
            attention_dropout=0.0, moe_token_dropout=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0,
            max_position_embeddings=512, pad_token_id=PAD, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2))

    def forward(self, src, tgt):
        out = self.model(input_ids=src, attention_mask=(src != PAD).long(), decoder_input_ids=tgt, use_cache=False)
        return out.logits, 0


def rows(lens, width):
    ids = torch.randint(4, VOCAB, (len(lens), width))
    ids[torch.arange(width) >= torch.tensor(lens)[:, None]] = PAD
    return ids


batches = [(rows(b['src_lens'], b['src_len']), rows(b['tgt_lens'], b['tgt_len']), rows(b['tgt_lens'], b['tgt_len']))
           for b in job['batches']]
model = Dense() if job['model'] == 'dense' else Nllb()
if job['precision'] == 'bf16':
    model = model.to(torch.bfloat16)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, fused=True)


def step(i):
    src, tgt_in, tgt_out = batches[i % len(batches)]
    logits, aux = model(src, tgt_in)
    loss = F.cross_entropy(logits.reshape(-1, VOCAB), tgt_out.reshape(-1), ignore_index=PAD, label_smoothing=0.1) + aux
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def say(**record): print(json.dumps(record), flush=True)


say(parameters=sum(p.numel() for p in model.parameters()), torch=torch.__version__)
done = 0
for line in sys.stdin:
    if line == 'end\n':
        break
    times = []
    for _ in range(int(line)):
        begun = time.perf_counter()
        loss = step(done)
        times.append((time.perf_counter() - begun) * 1e3)
        done += 1
    say(ms=times, loss=loss, rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
