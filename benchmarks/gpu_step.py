"""Speed of one optimizer step with two branches, against PEFT's: `gpu.py`, part "step".

Random weights in the shapes of real models, bf16, rank 16 on every linear layer, rows of realistic
lengths. PEFT has the same two adapters, both active, one trained. Its settings are varied one after
another, each from the fastest so far, and the fastest is quoted.

Work is counted as 4 N per token: the forward pass takes 2 N operations, the gradient with respect
to the activations 2 N, and frozen weights have no gradient. N are the weights of the decoder's
linear layers; those of the output head count at supervised tokens only. Attention, the adapters
and what checkpointing computes again are not counted, so the figure is a lower bound for both.
"""

import copy
import functools
import gc
import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from gpu_peft import PeftSetting, arrange, peft_model, peft_step
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from fedsdr.models.checkpointing import checkpoint_layers
from fedsdr.models.fast_path import prepare
from fedsdr.models.packing import supervised_tokens
from fedsdr.models.two_branch import BranchedModel
from fedsdr.tensors import Tensors
from fedsdr.training.optimizer_step import phase_steps, run_alone
from fedsdr.types import LocalSettings, TokenRow

RANK, ALPHA = 16, 32
GOAL_TFLOPS, GOAL_RATIO = 400, 1.5  # of the large model on an H100
SMOLLM2 = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
    num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
)  # fmt: skip
QWEN = Qwen2Config(
    vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
    num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False,
)  # fmt: skip
TINY = LlamaConfig(
    vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1,
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A model's shape and the rows of one optimizer step.

    `sizes` are (tokens per forward pass, checkpointing), tried in this order: checkpointing cannot
    be turned off again.
    """

    name: str
    shape: PretrainedConfig
    rows: tuple[TokenRow, ...]
    sizes: tuple[tuple[int, bool], ...]
    repeats: int


Step = Callable[[], float]  # -> the loss before the step


def rows(task: Any) -> Iterator[dict[str, Any]]:
    """Yield a row for each setting, then the ratio of the fastest, model by model."""
    device = torch.device("cuda" if task.cuda else "cpu")
    for work in works(task.cuda):
        found: list[dict[str, Any]] = []
        for row in measured_ours(work, device, task):
            found.append(row)
            yield row
        clear()
        for row in measured_peft(work, device, task):
            found.append(row)
            yield row
        clear()
        best = {who: max((r["tokens/s"] for r in found if r["who"] == who and "tokens/s" in r),
                         default=None) for who in ("fedsdr", "PEFT")}  # fmt: skip
        if best["fedsdr"] and best["PEFT"]:
            yield {"model": work.name, "who": "fastest over PEFT's fastest",
                   "ratio": best["fedsdr"] / best["PEFT"]}  # fmt: skip


def works(cuda: bool) -> list[Work]:
    """Return what is measured: the small model first, which takes seconds."""
    if not cuda:
        sizes = ((128, False), (512, False), (512, True))
        return [Work("tiny", TINY, random_rows(512, 300, longest=96), sizes, 1)]
    # The GPU waits for the launches of the small model: large packs first.
    small = ((16384, False), (4096, False), (16384, True))
    large = ((4096, False), (8192, False), (16384, False), (16384, True))
    return [
        Work("SmolLM2-135M", SMOLLM2, random_rows(32768, 49152), small, 3),
        Work("Qwen2.5-7B", QWEN, random_rows(16384, 152064), large, 3),
    ]


def random_rows(tokens: int, vocabulary: int, longest: int = 1024) -> tuple[TokenRow, ...]:
    """Return rows of `tokens` tokens in all, their lengths log-normal (median 200, most 32 to 800).

    The second half of each row is supervised, and no two rows begin alike.
    """
    draw, made, left = random.Random(0), [], tokens
    while left:
        n = min(left, longest, max(16, round(draw.lognormvariate(5.3, 0.7))))
        n = left if left - n < 16 else n
        content = (len(made) % vocabulary, *(draw.randrange(vocabulary) for _ in range(n - 1)))
        made.append(TokenRow(str(len(made)), content, tuple(i >= n // 2 for i in range(n))))
        left -= n
    return tuple(made)


def model_of(work: Work, device: torch.device) -> Any:
    """Return a frozen random model, made on its device."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(work.shape), dtype=dtype)
    return model.eval().requires_grad_(False)


def factors(model: BranchedModel) -> Tensors:
    """Return random factors of both branches; zeros would be faster to multiply."""
    draw = torch.Generator().manual_seed(0)
    return {
        name: value if name.endswith("lora_A") else torch.randn(value.shape, generator=draw) * 0.01
        for name, value in (model.initial("R", 0) | model.initial("S", 1)).items()
    }


def flops(model: Any, rows: Sequence[TokenRow]) -> float:
    """Return the operations of a step at 4 N per token."""
    head = model.get_output_embeddings()
    inner = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    inner -= head.weight.numel()
    tokens, labels = sum(len(row.tokens) for row in rows), sum(map(supervised_tokens, rows))
    return 4.0 * (inner * tokens + head.weight.numel() * labels)


def measured_ours(work: Work, device: torch.device, task: Any) -> Iterator[dict[str, Any]]:
    """Yield a row for each of our settings."""
    model = model_of(work, device)
    operations = flops(model, work.rows)
    notes = prepare(model)
    branches = BranchedModel(model, rank=RANK, alpha=ALPHA, target_modules="all-linear")
    start = factors(branches)
    checkpointed = False
    for tokens, checkpointing in work.sizes:
        if checkpointing and not checkpointed:
            checkpoint_layers(model)
            checkpointed = True
        setting = f"{tokens} tokens" + ", checkpointing" * checkpointing
        settings = LocalSettings(batch_size=len(work.rows), pack_tokens=tokens, lora_dropout=0.0)

        def step(settings: LocalSettings = settings) -> float:
            with branches.using("R", "S", trained="R"):
                parameters = branches.parameters("R")
                training = phase_steps(parameters, work.rows, settings, epochs=1, seed=0)
                return run_alone(training, model).loss

        row = {"model": work.name, "who": "fedsdr", "setting": setting}
        row |= {"note": "; ".join(notes)} if notes else {}
        begin = functools.partial(branches.set, start)
        yield row | measure(begin, step, work, operations, device, task)


def measured_peft(work: Work, device: torch.device, task: Any) -> Iterator[dict[str, Any]]:
    """Yield a row for each of PEFT's settings; every axis goes on from the fastest so far."""
    base = model_of(work, device)
    operations = flops(base, work.rows)
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(copy.deepcopy(work.shape))
    ours = BranchedModel(shape, rank=RANK, alpha=ALPHA, target_modules="all-linear")
    model = peft_model(base, factors(ours), RANK, ALPHA)
    start = {
        name: p.detach().cpu().clone() for name, p in model.named_parameters() if "lora_" in name
    }
    fastest, best = PeftSetting(*work.sizes[0]), 0.0
    axes: list[list[dict[str, Any]]] = [
        [{}, {"adapters": "fp32"}],
        [{"batches": "packed"}],
        [{"attention": "flash_attention_2"}] if _installed("flash_attn", device) else [],
        [{"tokens": t, "checkpointing": c} for t, c in work.sizes[1:]],
        [{"liger": True}] if _installed("liger_kernel", device) else [],
    ]
    for axis in axes:
        origin = fastest
        for change in axis:
            setting = replace(origin, **change)
            row = {"model": work.name, "who": "PEFT", "setting": str(setting)}
            begin = functools.partial(arrange, model, setting, start)
            step = functools.partial(peft_step, model, work.rows, setting)
            row |= measure(begin, step, work, operations, device, task)
            yield row
            if row.get("tokens/s", 0.0) > best:
                fastest, best = setting, row["tokens/s"]


def _installed(package: str, device: torch.device) -> bool:
    return device.type == "cuda" and importlib.util.find_spec(package) is not None


def measure(
    begin: Callable[[], None],
    step: Step,
    work: Work,
    operations: float,
    device: torch.device,
    task: Any,
) -> dict[str, Any]:
    """Return speed and peak memory of a step after `begin`, or why there are none.

    The first step warms up.
    """
    if task.seconds_left < 15 and device.type == "cuda":
        return {"note": "no time left"}
    try:
        begin()
        return _measured(step, work, operations, device)
    except torch.OutOfMemoryError:
        note = "out of memory"
    except Exception as error:  # a kernel of another package may raise anything
        note = f"{type(error).__name__}: {str(error)[:200]}"
    clear()
    return {"note": note}


def _measured(step: Step, work: Work, operations: float, device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    loss = step()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    took = []
    for _ in range(work.repeats):
        began = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    seconds = statistics.median(took)
    tokens = sum(len(row.tokens) for row in work.rows)
    found = {"loss": loss, "seconds": seconds, "slowest": max(took), "tokens/s": tokens / seconds,
             "TFLOP/s": operations / seconds / 1e12}  # fmt: skip
    return found | ({"peak GiB": torch.cuda.max_memory_allocated() / 2**30} if cuda else {})


def clear() -> None:
    """Free what is no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
