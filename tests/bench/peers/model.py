#!/usr/bin/env python3
"""Training steps of a model in PyTorch, of the sizes that the job gives. job['model'] is one of
    mixtral         Hugging Face's Mixtral, its experts by grouped_mm, as by default
    llama           its Llama: the same without experts
    switch          its Switch Transformer, top 1, capacity as the job has it
    nllb            its NLLB-MoE, top 2, dropless
    nllb_mended     the same, where every expert computes the tokens routed to it and no others
    transformer     nn.Transformer
All: cross-entropy, gradient clipping, fused AdamW; bf16 means bf16 parameters and optimizer state, which is
PyTorch's fastest and smallest form (ours keeps f32 masters).
"""
import math
import torch
import torch.nn as nn
import torch.nn.functional as F
from serve import serve


class Transformer(nn.Module):
    """A pre-norm encoder-decoder with one embedding for source, target and output."""

    def __init__(self, job):
        super().__init__()
        dim, self.pad = job['dim'], job['pad']
        def options(): return dict(d_model=dim, nhead=job['heads'], dim_feedforward=job['hidden'],
                                   dropout=job['dropout'], batch_first=True, norm_first=True)
        self.embedding = nn.Embedding(job['vocab'], dim, padding_idx=self.pad)
        nn.init.normal_(self.embedding.weight, 0, dim ** -0.5)
        self.position = nn.Embedding(512, dim)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(**options()), job['encoder_layers'],
                                             nn.LayerNorm(dim), enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**options()), job['decoder_layers'],
                                             nn.LayerNorm(dim))

    def embed(self, ids):
        return self.embedding(ids) * self.embedding.embedding_dim ** 0.5 + self.position(torch.arange(ids.shape[1]))

    def forward(self, src, tgt):
        memory = self.encoder(self.embed(src), src_key_padding_mask=src == self.pad)
        causal = torch.full((tgt.shape[1],) * 2, float('-inf'), dtype=memory.dtype).triu(1)
        x = self.decoder(self.embed(tgt), memory, tgt_mask=causal, memory_key_padding_mask=src == self.pad)
        return F.linear(x, self.embedding.weight)


def each_expert_its_tokens(self, hidden, mask, probabilities):
    """NllbMoeExperts.forward as it was up to Transformers 4. In 5.23 it takes the 0 and 1 of the routing mask
    for ids of experts: expert 0 computes all (token, expert) pairs that are not a first choice."""
    y = torch.zeros_like(hidden)
    for e in range(self.num_experts):
        tokens = probabilities[:, e].nonzero().squeeze(1)
        if len(tokens) > 0:
            y.index_add_(0, tokens, self[f'expert_{e}'](hidden[tokens]) * probabilities[tokens, e, None])
    return y


def common(job):
    return dict(vocab_size=job['vocab'], pad_token_id=job['pad'], bos_token_id=1, eos_token_id=2)


def nllb(job, mended=False):
    from transformers import NllbMoeConfig, NllbMoeForConditionalGeneration
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeExperts
    if mended:
        NllbMoeExperts.forward = each_expert_its_tokens
    return NllbMoeForConditionalGeneration(NllbMoeConfig(
        **common(job), d_model=job['dim'], encoder_layers=job['encoder_layers'], decoder_layers=job['decoder_layers'],
        encoder_attention_heads=job['heads'], decoder_attention_heads=job['heads'], encoder_ffn_dim=job['hidden'],
        decoder_ffn_dim=job['hidden'], encoder_sparse_step=2, decoder_sparse_step=2, num_experts=job['experts'],
        expert_capacity=1 << 20,  # dropless, as ours
        dropout=job['dropout'], attention_dropout=0.0, moe_token_dropout=0.0, encoder_layerdrop=0.0,
        decoder_layerdrop=0.0, max_position_embeddings=512, decoder_start_token_id=2))


def switch(job):
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration
    tokens = job['batches'][0]['rows'] * job['batches'][0]['src_len']
    return SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(
        **common(job), d_model=job['dim'], d_kv=job['dim'] // job['heads'], d_ff=job['hidden'],
        num_layers=job['encoder_layers'], num_decoder_layers=job['decoder_layers'], num_heads=job['heads'],
        num_sparse_encoder_layers=job['encoder_layers'] // 2, num_sparse_decoder_layers=job['decoder_layers'] // 2,
        num_experts=job['experts'], expert_capacity=math.ceil(job['capacity'] * tokens / job['experts']),
        dropout_rate=job['dropout'], decoder_start_token_id=0))


def decoder_only(job):
    return dict(**common(job), hidden_size=job['dim'], intermediate_size=job['hidden'], num_hidden_layers=job['layers'],
                num_attention_heads=job['heads'], num_key_value_heads=job['heads'], head_dim=job['dim'] // job['heads'],
                max_position_embeddings=1024)


def mixtral(job):
    from transformers import MixtralConfig, MixtralForCausalLM
    return MixtralForCausalLM(MixtralConfig(**decoder_only(job), num_local_experts=job['experts'],
                                            num_experts_per_tok=job['top_k'], output_router_logits=True))


def llama(job):
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(**decoder_only(job)))


MODELS = {'mixtral': mixtral, 'llama': llama, 'switch': switch, 'nllb': nllb, 'nllb_mended': lambda job: nllb(job, True),
          'transformer': Transformer}


def rows(job, lens, width):
    ids = torch.randint(4, job['vocab'], (len(lens), width))
    ids[torch.arange(width) >= torch.tensor(lens)[:, None]] = job['pad']
    return ids


def make(job):
    name, pad, smoothing = job['model'], job['pad'], job['label_smoothing']
    model = MODELS[name](job)
    if job['precision'] == 'bf16':
        model = model.to(torch.bfloat16)
    model.train()
    batches = [(rows(job, b['src_lens'], b['src_len']), rows(job, b['tgt_lens'], b['tgt_len']),
                rows(job, b['tgt_lens'], b['tgt_len'])) for b in job['batches']]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, fused=True)
    done = 0

    def loss_of(src, tgt_in, tgt_out):
        if name in ('mixtral', 'llama'):
            return model(input_ids=src, labels=src, use_cache=False).loss
        if name == 'transformer':
            logits = model(src, tgt_in)
        else:
            logits = model(input_ids=src, attention_mask=(src != pad).long(), decoder_input_ids=tgt_in, use_cache=False).logits
        return F.cross_entropy(logits.reshape(-1, job['vocab']), tgt_out.reshape(-1), ignore_index=pad,
                               label_smoothing=smoothing)

    def step(lap):
        nonlocal done
        loss = loss_of(*batches[done % len(batches)])
        done += 1
        lap('forward')
        loss.backward()
        lap('backward')
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lap('update')
        return dict(loss=loss.item())

    return step, dict(parameters=sum(p.numel() for p in model.parameters()))


if __name__ == '__main__':
    serve(make)
