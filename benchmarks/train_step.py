"""Time of one optimizer step: two branches in fedsdr, one PEFT adapter in TRL's SFTTrainer.

    python benchmarks/train_step.py [--data FOLDER] [--rows 16] [--repeats 3] [--out FILE.json]

All use the same rows, loss mask, LoRA (rank 8 on q and v, dropout 0.05), AdamW and batch size, and
run alternately in one process. SFTTrainer runs with its defaults and with its fastest equivalent
settings: no gradient checkpointing, batches of similar length, bf16 only where the hardware has it.
`--data` is a folder with one file per client (default: the embedded five domains). The floor is the
time of our step's matmuls alone, each timed at its shape and layout in the same run.
Requires: pip install -e '.[bench]'
"""

import argparse
import functools
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fedsdr.config import Config, DataConfig
from fedsdr.data.clients import load_clients
from fedsdr.models.packing import supervised_tokens
from fedsdr.runs.client_runtime import ClientRuntime, open_runtime
from fedsdr.training.optimizer_step import train_phase
from fedsdr.types import LocalSettings, TokenRow

PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.mm.out,
    torch.ops.aten.addmm.default,
    torch.ops.aten.addmm_.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
}


Step = Callable[[], tuple[float, float]]  # -> loss, seconds


def now() -> float:
    """Return the time after all queued work of the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def real_rows(runtime: ClientRuntime, data: str, count: int, max_length: int) -> list[TokenRow]:
    """Return `count` rows, taken from the clients in turn."""
    clients = load_clients(DataConfig(clients=data, test_fraction=0.0))
    ways = [client.raw for client in clients]
    mixed = [rows[i] for i in range(-(-count // len(ways))) for rows in ways][:count]
    return [runtime.renderer.encode(example, max_length) for example in mixed]


def our_step(runtime: ClientRuntime, rows: Sequence[TokenRow]) -> Step:
    """Return a step that trains R with S in the forward."""
    settings = LocalSettings(batch_size=len(rows))
    start = runtime.model.initial("R", 0) | runtime.model.initial("S", 1)

    def step() -> tuple[float, float]:
        runtime.model.set(start)
        began = now()
        with runtime.model.using("R", "S", trained="R", dropout=settings.lora_dropout):
            parameters = runtime.model.parameters("R")
            done = train_phase(runtime.model.model, parameters, rows, settings, epochs=1, seed=0)
        return done.loss, now() - began

    return step


def trl_step(runtime: ClientRuntime, rows: Sequence[TokenRow], **arguments: Any) -> Step:
    """Return the same step with SFTTrainer."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Measures the step alone, without the trainer's setup."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = now() - self.began

    # A new model with transformers' attention, norms and head, as in TRL.
    base = runtime.model.model
    folder = str(base.config._name_or_path)
    own = type(base).from_pretrained(folder, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    peft_model = get_peft_model(own, lora)
    data = Dataset.from_list(
        [
            {"input_ids": list(r.tokens), "completion_mask": [int(s) for s in r.supervised]}
            for r in rows
        ]
    )
    batch = arguments.setdefault("per_device_train_batch_size", 8)
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=1,
        gradient_accumulation_steps=-(-len(rows) // batch),
        learning_rate=3e-4,
        completion_only_loss=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        **arguments,
    )

    def step() -> tuple[float, float]:
        clock = Clock()
        trainer = SFTTrainer(
            peft_model,
            args=config,
            train_dataset=data,
            processing_class=runtime.base.tokenizer,
            callbacks=[clock],
        )
        trainer.train()
        return float(trainer.state.log_history[0]["loss"]), clock.seconds

    return step


class Products(TorchDispatchMode):
    """Counts every matmul by operation, shapes and layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.calls: dict[str, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            layouts = tree_map_only(torch.Tensor, _layout, (args, kwargs or {}))
            key = f"{func} {layouts}"
            self.found[key] += 1
            self.calls[key] = func, *layouts
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Layout:
    """Shape, strides, dtype and device of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _layout(t: torch.Tensor) -> Layout:
    return Layout(tuple(t.shape), tuple(t.stride()), t.dtype, t.device)


def _tensor(of: Layout) -> torch.Tensor:
    return torch.empty_strided(of.shape, of.stride, dtype=of.dtype, device=of.device).normal_()


def floor_seconds(step: Step, repeats: int) -> float:
    """Return the time of the step's matmuls alone."""
    with Products() as products:
        step()
    total = 0.0
    for key, times in products.found.items():
        product, args, kwargs = products.calls[key]
        args, kwargs = tree_map_only(Layout, _tensor, (args, kwargs))
        again = functools.partial(product, *args, **kwargs)
        again()
        took = []
        for _ in range(repeats):
            began = now()
            again()
            took.append(now() - began)
        total += statistics.median(took) * times
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="embedded:five-domains")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--skip-default", action="store_true", help="only TRL's fastest settings")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    runtime = open_runtime(Config(), Path(tempfile.mkdtemp()))
    rows = real_rows(runtime, options.data, options.rows, options.max_length)
    tokens, labels = sum(len(r.tokens) for r in rows), sum(map(supervised_tokens, rows))
    fast_bf16 = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    best = {
        "bf16": fast_bf16,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "group_by_length",
    }
    contenders = {
        "fedsdr, two branches": our_step(runtime, rows),
        "SFTTrainer, fastest equivalent settings": trl_step(runtime, rows, **best),
    }
    if not options.skip_default:
        contenders["SFTTrainer, defaults in fp32" if not fast_bf16 else "SFTTrainer, defaults"] = (
            trl_step(runtime, rows, **({} if fast_bf16 else {"bf16": False}))
        )
    losses = {name: step()[0] for name, step in contenders.items()}  # and warm up
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.repeats):
        for name, step in contenders.items():
            seconds[name].append(step()[1])
    ours = seconds["fedsdr, two branches"]
    floor = floor_seconds(contenders["fedsdr, two branches"], 3)

    print(
        f"{len(rows)} rows, {tokens} tokens, {labels} supervised; {torch.get_num_threads()} threads"
    )
    print(f"{'':40} {'loss':>7} {'s/step':>9} {'tokens/s':>9} {'speed-up':>8}  range")
    table = []
    for name, took in seconds.items():
        ratios = [theirs / mine for theirs, mine in zip(took, ours, strict=True)]
        row = {
            "name": name,
            "loss": losses[name],
            "seconds": took,
            "tokens_per_second": tokens / statistics.median(took),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
        table.append(row)
        print(
            f"{name:40} {row['loss']:7.4f} {statistics.median(took):9.2f} "
            f"{row['tokens_per_second']:9.1f} {row['ratio']:7.2f}x  "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )
    share = floor / statistics.median(ours)
    print(f"matmuls alone: {floor:.2f} s, {share:.0%} of our step")
    if options.out:
        facts = {"rows": len(rows), "tokens": tokens, "supervised": labels, "table": table}
        facts |= {"floor_seconds": floor, "floor_share": share}
        options.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
