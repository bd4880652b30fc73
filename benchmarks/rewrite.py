"""Generation speed on real rewriting prompts: fedsdr, transformers' `generate`, openvino-genai.

    python benchmarks/rewrite.py [--quick] [--out FILE.json]

All engines get the same model, prompts (rewriting prompts of the embedded data) and limit on new
tokens, with greedy decoding, and run alternately. A ratio compares two engines within one repeat;
the table shows its median, minimum and maximum over the repeats.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedsdr.config import DataConfig, ModelConfig
from fedsdr.data.answer_parsing import kind_of
from fedsdr.data.chat_templates import Renderer, render_for
from fedsdr.data.clients import load_clients
from fedsdr.distill.prompts import family_of, fill, load_prompts, placeholders_of
from fedsdr.extras import is_installed
from fedsdr.models.base_model import EMBEDDED, Base, cache_folder, load_base
from fedsdr.models.generation import transformers_generate
from fedsdr.models.row_attention import ATTENTION
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest, Turn

BATCH = 32
PLAIN = {"generate, dynamic cache": "dynamic", "generate, static cache": "static"}


def rewriting_requests(count: int, clients: str) -> list[GenerationRequest]:
    """Return the rewriting requests of the first rows of each client, in turn."""
    prompts, columns = load_prompts(), []
    for client in load_clients(DataConfig(clients=clients)):
        kind = kind_of([row.response for row in client.raw])
        texts = (
            fill(prompts[family_of(row.response, kind)], next(placeholders_of(row)))
            for row in client.raw[:count]
        )
        columns.append([(client.client_id, text) for text in texts])
    rows = [pair for turn in zip(*columns, strict=False) for pair in turn][:count]
    return [
        GenerationRequest(f"{i} {name}", (Turn("user", text),))
        for i, (name, text) in enumerate(rows)
    ]


def plain_generate(base: Base, renderer: Renderer, cache: str) -> Generate:
    """Return a `Generate` over transformers' `generate` with left padding."""
    model: Any = base.model
    pad = renderer.stop_token_ids[0]

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
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
    """Return fedsdr's generation over the same model."""
    made = transformers_generate(
        base.model, base.tokenizer, renderer.prompt, renderer.stop_token_ids, BATCH
    )

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        base.model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
        yield from made(requests, decoding)

    return generate


def openvino_on_cpu(base: Base, renderer: Renderer, copies: Path) -> Generate:
    """Return openvino-genai on an fp16 copy of the model's .gguf file."""
    from fedsdr.teachers.openvino import openvino_generate
    from fedsdr.teachers.openvino_conversion import write_fp16_copy

    assert base.gguf is not None
    copy = copies / f"{base.gguf.stem}-{base.fingerprint[:12]}-fp16.gguf"
    if not copy.is_file():
        write_fp16_copy(base.gguf, copy)
    return openvino_generate(
        copy, renderer.prompt, batch_size=BATCH, stop_ids=renderer.stop_token_ids
    )


def measure(
    engines: dict[str, Generate],
    requests: Sequence[GenerationRequest],
    decoding: Decoding,
    repeats: int,
) -> tuple[dict[str, list[float]], dict[str, dict[str, Generation]]]:
    """Return the new tokens per second of each repeat, and the answers of the last repeat."""
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    answers: dict[str, dict[str, Generation]] = {}
    for generate in engines.values():  # warm-up
        list(generate(requests[:2], Decoding(temperature=0.0, max_new_tokens=2)))
    for repeat in range(1, repeats + 1):
        # Alternate the order, so that drift favours no engine.
        for name in list(engines)[:: 1 if repeat % 2 else -1]:
            began = time.perf_counter()
            got = list(engines[name](requests, decoding))
            seconds = time.perf_counter() - began
            speeds[name].append(sum(g.new_tokens for g in got) / seconds)
            answers[name] = {g.id: g for g in got}
            print(f"  repeat {repeat}, {name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return speeds, answers


def compare(
    speeds: dict[str, list[float]], answers: dict[str, dict[str, Generation]]
) -> list[dict[str, Any]]:
    """Return a row per engine: its speed, the ratio to the faster `generate`, equal answers.

    The faster `generate` has the higher median; "equal" counts texts equal to its texts.
    """
    plain = max(PLAIN, key=lambda name: statistics.median(speeds[name]))
    rows = []
    for name, own in speeds.items():
        ratios = [a / b for a, b in zip(own, speeds[plain], strict=True)]
        rows.append(
            {
                "engine": name,
                "new_tokens": sum(g.new_tokens for g in answers[name].values()),
                "tokens_per_second": statistics.median(own),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "equal": sum(
                    g.text.strip() == answers[plain][i].text for i, g in answers[name].items()
                ),
                "against": plain,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 prompts, 8 tokens, one repeat")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clients", default="embedded:five-domains", help="folder with data")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    given = parser.parse_args()
    if given.quick:
        given.prompts, given.max_new_tokens, given.repeats = 4, 8, 1

    torch.set_num_threads(given.threads)
    if hasattr(os, "sched_setaffinity"):  # the same cores for OpenVINO's own threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.threads :])
    base = load_base(ModelConfig(name=EMBEDDED, device="cpu"))
    renderer = render_for(base.tokenizer)
    engines = {name: plain_generate(base, renderer, cache) for name, cache in PLAIN.items()}
    engines["fedsdr"] = our_generate(base, renderer)
    if is_installed("openvino_genai"):
        engines["openvino-genai"] = openvino_on_cpu(base, renderer, cache_folder() / "models")
    requests = rewriting_requests(given.prompts, given.clients)
    lengths = [len(renderer.prompt(request.turns)) for request in requests]
    decoding = Decoding(temperature=0.0, max_new_tokens=given.max_new_tokens)
    rows = compare(*measure(engines, requests, decoding, given.repeats))

    dtype = str(next(base.model.parameters()).dtype).removeprefix("torch.")
    capability = torch.backends.cpu.get_cpu_capability()
    print(
        f"{len(lengths)} prompts, {sum(lengths)} tokens ({min(lengths)} to {max(lengths)}), "
        f"at most {given.max_new_tokens} new, batch {BATCH}, {dtype}, {given.threads} threads, "
        f"{capability}, {given.repeats} repeats; ratios against {rows[0]['against']}"
    )
    print("| engine | new tokens | tokens/s | ratio | min | max | equal texts |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row['engine']} | {row['new_tokens']} | {row['tokens_per_second']:.1f} "
            f"| {row['ratio']:.2f} | {row['ratio_min']:.2f} | {row['ratio_max']:.2f} "
            f"| {row['equal']} of {len(requests)} |"
        )
    if given.out:
        facts = {
            "prompts": len(lengths),
            "prompt_tokens": sum(lengths),
            "max_new_tokens": given.max_new_tokens,
            "batch": BATCH,
            "dtype": dtype,
            "threads": given.threads,
            "cpu": capability,
            "repeats": given.repeats,
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "engines": rows,
        }
        given.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
