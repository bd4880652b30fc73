"""Rewriting: ours against transformers' own `generate` and openvino-genai, on real prompts.

    python benchmarks/rewrite.py [--quick] [--out FILE.json]

All engines get the same model and the same prompts (the rewriting prompts of embedded real data),
greedy, with the same bound on new tokens, one after the other in each repeat. A ratio compares two
engines within one repeat; the table has its median, smallest and largest over the repeats.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fedsdr.answers import kind_of
from fedsdr.config import ModelConfig
from fedsdr.data.clients import load_clients
from fedsdr.data.templates import Renderer, render_for
from fedsdr.distill.prompts import family_of, fill, load_prompts, placeholders_of
from fedsdr.models.attention import ATTENTION
from fedsdr.models.generation import transformers_generate
from fedsdr.models.load import EMBEDDED, Base, load_base
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest, Turn

BATCH = 32


def rewriting_requests(count: int, clients: str) -> list[GenerationRequest]:
    """Return what rewriting asks for the first rows of each client, taken in turn."""
    prompts, columns = load_prompts(), []
    for client in load_clients(clients=clients):
        kind = kind_of([row.response for row in client.raw])
        texts = (
            fill(prompts[family_of(row.response, kind)], placeholders_of(row, 0))
            for row in client.raw[:count]
        )
        columns.append([(client.client_id, text) for text in texts])
    rows = [pair for turn in zip(*columns, strict=False) for pair in turn][:count]
    return [
        GenerationRequest(f"{i} {name}", (Turn("user", text),))
        for i, (name, text) in enumerate(rows)
    ]


def plain_generate(base: Base, renderer: Renderer, cache: str) -> Generate:
    """Return a `Generate` over transformers' `generate`: left padding, batches as they come."""
    model: Any = base.model
    pad = renderer.stop_token_ids[0]

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Any:
        model.set_attn_implementation("sdpa")  # its default
        for start in range(0, len(requests), BATCH):
            group = requests[start : start + BATCH]
            prompts = [renderer.prompt(request.turns) for request in group]
            longest = max(map(len, prompts))
            rows = [[pad] * (longest - len(p)) + p for p in prompts]
            mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
            out = model.generate(
                torch.tensor(rows),
                attention_mask=torch.tensor(mask),
                max_new_tokens=decoding.max_new_tokens,
                do_sample=False,
                eos_token_id=list(renderer.stop_token_ids),
                pad_token_id=pad,
                cache_implementation=cache,
            )[:, longest:]
            for request, prompt, tokens in zip(group, prompts, out.tolist(), strict=True):
                ends = [i for i, t in enumerate(tokens) if t in renderer.stop_token_ids]
                new = tokens[: ends[0] + 1] if ends else tokens
                text = base.tokenizer.decode(new, skip_special_tokens=True).strip()
                yield Generation(request.id, text, bool(ends), len(prompt), len(new))

    return generate


def our_generate(base: Base, renderer: Renderer) -> Generate:
    """Return our own layer over the same model."""
    made = transformers_generate(
        base.model, base.tokenizer, renderer.prompt, renderer.stop_token_ids, BATCH
    )

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Any:
        base.model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
        yield from made(requests, decoding)

    return generate


def measure(
    engines: dict[str, Generate],
    requests: Sequence[GenerationRequest],
    decoding: Decoding,
    repeats: int,
) -> tuple[dict[str, list[float]], dict[str, dict[str, Generation]]]:
    """Return the new tokens a second of each repeat, and the answers of the last one."""
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    answers: dict[str, dict[str, Generation]] = {}
    for name, generate in engines.items():  # warm
        list(generate(requests[:2], Decoding(temperature=0.0, max_new_tokens=4)))
    for repeat in range(repeats):
        for name, generate in engines.items():
            began = time.perf_counter()
            got = list(generate(requests, decoding))
            seconds = time.perf_counter() - began
            speeds[name].append(sum(g.new_tokens for g in got) / seconds)
            answers[name] = {g.id: g for g in got}
            print(f"  repeat {repeat + 1} {name}: {seconds:.1f} s, {speeds[name][-1]:.1f} tokens/s", flush=True)
    return speeds, answers
