#!/usr/bin/env python3
"""Hugging Face's `generate`, on the models of model.py: job['new'] tokens for each of job['rows'] prompts, no fewer and no
more, greedy or with job['beam'] beams, with its cache."""
import torch
from model import MODELS
from serve import serve


def make(job):
    model = MODELS[job['model']](job)
    if job['precision'] == 'bf16':
        model = model.to(torch.bfloat16)
    model.eval()
    model.generation_config.eos_token_id = None  # none ends a sequence early
    prompt = torch.randint(4, job['vocab'], (job['rows'], job['prompt']))
    options = dict(max_new_tokens=job['new'], do_sample=False, num_beams=job['beam'], use_cache=True,
                   pad_token_id=job['pad'])
    before = 0 if model.config.is_encoder_decoder else job['prompt'] - 1

    def step(lap):
        with torch.no_grad():
            ids = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
        assert ids.shape == (job['rows'], before + job['new'] + 1), ids.shape

    return step, dict(parameters=sum(p.numel() for p in model.parameters()))


serve(make)
