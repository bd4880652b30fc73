"""Time of one optimizer step: two branches in fedsdr, one PEFT adapter in TRL's SFTTrainer.

    python benchmarks/train_step.py [--data FOLDER] [--rows 10] [--repeats 3] [--out FILE.json]

All use the same rows, loss mask, LoRA (rank 8 on q and v, dropout 0.05), AdamW and batch size, in
one process. SFTTrainer is tried in fp32, under bf16 autocast and with bf16 weights, each with
batches of similar length and packed, and with Liger's kernels where they are installed; gradient
checkpointing is off. Its fastest setting then runs alternately with ours in both dtypes.
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
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fedsdr.config import Config, DataConfig, ModelConfig
from fedsdr.data.clients import load_clients
from fedsdr.models.packing import supervised_tokens
from fedsdr.runs.client_runtime import ClientRuntime, open_runtime
from fedsdr.training.optimizer_step import phase_steps, run_alone
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
    """Return `count` rows, taken from the clients in turn; those that are cut before the answer
    are left out."""
    clients = load_clients(DataConfig(clients=data, test_fraction=0.0))
    ways = [client.raw for client in clients]
    mixed = [rows[i] for i in range(-(-count // len(ways))) for rows in ways][:count]
    rows = [runtime.renderer.encode(example, max_length) for example in mixed]
    return [row for row in rows if supervised_tokens(row)]  # TRL drops the others


def our_step(runtime: ClientRuntime, rows: Sequence[TokenRow]) -> Step:
    """Return a step that trains R with S in the forward."""
    settings = LocalSettings(batch_size=len(rows))
    start = runtime.model.initial("R", 0) | runtime.model.initial("S", 1)

    def step() -> tuple[float, float]:
        runtime.model.set(start)
        began = now()
        with runtime.model.using("R", "S", trained="R", dropout=settings.lora_dropout):
            parameters = runtime.model.parameters("R")
            training = phase_steps(parameters, rows, settings, epochs=1, seed=0)
            done = run_alone(training, runtime.model.model)
        return done.loss, now() - began

    return step


def sft_settings() -> dict[str, dict[str, Any]]:
    """Return the settings of SFTTrainer that are tried; `weights` is the base model's dtype."""
    dtypes: dict[str, dict[str, Any]] = {
        "fp32": {"weights": torch.float32, "bf16": False},
        "bf16 autocast": {"weights": torch.float32, "bf16": True},
        "bf16 weights": {"weights": torch.bfloat16, "bf16": False},
    }
    grouped = {"train_sampling_strategy": "group_by_length"}
    packed = {"packing": True, "max_length": 1024, "per_device_train_batch_size": 1}
    settings = {
        f"{dtype}, {name}": own | batches
        for dtype, own in dtypes.items()
        for name, batches in (("grouped", grouped), ("packed", packed))
    }
    if find_spec("liger_kernel"):
        liger = {"use_liger_kernel": True}
        settings |= {f"{name}, Liger": own | liger for name, own in settings.items()}
    return settings


def sft_step(
    runtime: ClientRuntime, rows: Sequence[TokenRow], weights: torch.dtype, **arguments: Any
) -> Step:
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
    own = type(base).from_pretrained(folder, dtype=weights)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
    peft_model = get_peft_model(own, lora)
    data = Dataset.from_list(
        [
            {"input_ids": list(r.tokens), "completion_mask": [int(s) for s in r.supervised]}
            for r in rows
        ]
    )
    batch = arguments.setdefault("per_device_train_batch_size", 8)  # packs, if packed
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
        gradient_checkpointing=False,
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
        with redirect_stdout(sys.stderr):  # where its log belongs
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


def tried(runtime: ClientRuntime, rows: Sequence[TokenRow]) -> dict[str, dict[str, Any]]:
    """Return loss and seconds of each setting of SFTTrainer, or why it does not run.

    The first of two steps gives the loss, the second one the seconds.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, arguments in sft_settings().items():
        try:
            step = sft_step(runtime, rows, **arguments)
            found[name] = {"loss": step()[0], "seconds": step()[1]}
        except Exception as error:  # Liger's kernels, for one, need a GPU
            found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}
        print(f"  SFTTrainer, {name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="embedded:five-domains")
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    folder = Path(tempfile.mkdtemp())
    ours = {
        f"fedsdr, two branches, {dtype}": open_runtime(
            Config(model=ModelConfig(dtype=dtype)), folder
        )
        for dtype in ("fp32", "bf16")
    }
    runtime = next(iter(ours.values()))
    rows = real_rows(runtime, options.data, options.rows, options.max_length)
    tokens, labels = sum(len(r.tokens) for r in rows), sum(map(supervised_tokens, rows))
    steps = {name: our_step(own, rows) for name, own in ours.items()}
    attempts = tried(runtime, rows)
    fastest = min((a["seconds"], name) for name, a in attempts.items() if "seconds" in a)[1]
    best = f"SFTTrainer, {fastest}"
    steps[best] = sft_step(runtime, rows, **sft_settings()[fastest])

    losses = {name: step()[0] for name, step in steps.items()}  # and warm up
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            seconds[name].append(step()[1])
    floors = {name: floor_seconds(steps[name], 3) for name in ours}
    table = [
        row_of(name, losses[name], took, seconds[best], tokens, floors.get(name))
        for name, took in seconds.items()
    ]
    print(f"{len(rows)} rows, {tokens:,} tokens, {labels} supervised; {options.repeats} repeats\n")
    print("| | loss | s/step | tokens/s | times SFTTrainer's best | range | matmuls alone |")
    print("| :-- | --: | --: | --: | --: | --: | --: |")
    for row in table:
        low, high = row["ratio_range"]
        share = f"{row['floor_share']:.0%}" if row["floor_share"] else ""
        print(
            f"| {row['name']} | {row['loss']:.4f} | {statistics.median(row['seconds']):.2f} | "
            f"{row['tokens_per_second']:.1f} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} | "
            f"{share} |"
        )
    print("\nSettings of SFTTrainer that were tried (one step after a warm-up step):\n")
    print("| SFTTrainer | loss | s/step | tokens/s |\n| :-- | --: | --: | --: |")
    for name, found in attempts.items():
        if "error" in found:
            print(f"| {name} | | does not run ({found['error']}) | |")
        else:
            speed = tokens / found["seconds"]
            print(f"| {name} | {found['loss']:.4f} | {found['seconds']:.2f} | {speed:.1f} |")
    if options.out:
        facts = {"rows": len(rows), "tokens": tokens, "supervised": labels, "table": table}
        options.out.write_text(json.dumps(facts | {"tried": attempts}, indent=2) + "\n")


def row_of(
    name: str,
    loss: float,
    took: list[float],
    against: list[float],
    tokens: int,
    floor: float | None,
) -> dict[str, Any]:
    """Return a row of the table; a ratio compares two steps of one repeat."""
    ratios = [theirs / own for theirs, own in zip(against, took, strict=True)]
    return {
        "name": name,
        "loss": loss,
        "seconds": took,
        "tokens_per_second": tokens / statistics.median(took),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "floor_share": floor / statistics.median(took) if floor else None,
    }


if __name__ == "__main__":
    main()
