"""Measured peak memory of a training step, compared with the estimate: `benchmarks/memory.py`.

Every configuration runs in its own process: load the model, one short warm-up step, then two
optimizer steps of one full pack each. Measured is the peak that these two add: resident memory on
a CPU (Linux), allocated bytes on CUDA. Estimated is `MemoryEstimate.step`.

glibc is configured to return freed blocks at once, so that resident memory is live memory;
`--heap` disables that and includes heap fragmentation, as in a real run on a CPU.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

MODEL = "embedded:smollm2-135m-instruct"
MAX_LENGTH = 512
NO_HOLES = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def measure(case: dict) -> dict:
    """Return the case with its estimated and measured bytes (runs in the child process)."""
    import torch

    from fedsdr.config import Config, LoraConfig, ModelConfig, TrainConfig
    from fedsdr.models.memory import estimate, full_pack, shape_of
    from fedsdr.models.packing import device_of
    from fedsdr.runs.client_runtime import open_runtime
    from fedsdr.training.optimizer_step import phase_steps, run_alone
    from fedsdr.types import LocalSettings

    config = Config(
        model=ModelConfig(case["model"], dtype=case["dtype"], quantize=case["quantize"]),
        train=TrainConfig(pack_tokens=case["pack_tokens"], checkpointing=case["checkpointing"]),
        lora=LoraConfig(target_modules=case["targets"]),
    )
    dropout, rows = config.lora.dropout, full_pack(case["pack_tokens"], MAX_LENGTH)
    expected = estimate(shape_of(config), rows, dropout=dropout, quantize=case["quantize"])
    model = open_runtime(config, Path(tempfile.gettempdir())).model
    device = device_of(model.model)
    settings = LocalSettings(batch_size=len(rows), pack_tokens=case["pack_tokens"])

    def step(rows: list, epochs: int) -> None:
        with model.using("R", "S", trained="R", dropout=dropout):
            training = phase_steps(model.parameters("R"), rows, settings, epochs=epochs, seed=0)
            run_alone(training, model.model)

    step(full_pack(8, 8), 1)
    before = reset_peak(device)
    step(rows, 2)
    if device.type == "cuda":
        peak, where = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_name(device)
    else:
        peak, where = resident("VmHWM"), "cpu"
    return {
        **case,
        "dtype": str(next(model.model.parameters()).dtype).removeprefix("torch."),
        "device": where,
        "estimated": expected.step,
        "measured": peak - before,
        "ratio": expected.step / (peak - before),
    }


def reset_peak(device) -> int:
    """Reset the peak and return the bytes in use."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)  # free small blocks of the warm-up step
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", default="auto", help="auto, fp32, bf16 or fp16")
    parser.add_argument("--quantize", default="none", help="none, 8bit or 4bit (CUDA)")
    parser.add_argument("--packs", default="512,1024,2048", help="pack sizes in tokens")
    parser.add_argument("--heap", action="store_true", help="include heap fragmentation")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(json.loads(options.case))))
        return
    results = []
    print(
        f"{'pack':>6} {'targets':<11} {'checkpointing':<13} {'estimated':>10} {'measured':>10}",
        "ratio",
    )
    for pack_tokens, targets, checkpointing in product(
        [int(size) for size in options.packs.split(",")],
        (["q_proj", "v_proj"], "all-linear"),
        (False, True),
    ):
        case = {
            "model": options.model,
            "dtype": options.dtype,
            "quantize": options.quantize,
            "targets": targets,
            "checkpointing": checkpointing,
            "pack_tokens": pack_tokens,
        }
        command = [sys.executable, __file__, "--case", json.dumps(case)]
        environment = dict(os.environ) if options.heap else {**os.environ, **NO_HOLES}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=environment
        )
        result = json.loads(done.stdout.splitlines()[-1])
        results.append(result)
        name = "all-linear" if targets == "all-linear" else "q, v"
        print(
            f"{pack_tokens:>6} {name:<11} {str(checkpointing).lower():<13} "
            f"{result['estimated'] / 2**20:>6,.0f} MiB {result['measured'] / 2**20:>6,.0f} MiB "
            f"{result['ratio']:.3f}",
            flush=True,
        )
    worst = max(abs(r["ratio"] - 1) for r in results)
    print(
        f"{results[0]['device']}, {results[0]['dtype']}: largest error of the estimate {worst:.1%}"
    )
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
