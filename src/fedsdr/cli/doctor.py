"""fedsdr doctor: report hardware, optional packages, and how to install what is missing."""

import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from fedsdr.cli.options import (
    command_line,
    json_option,
    load_checked,
    overrides,
    set_options,
)

# package on PyPI -> (purpose, how to install)
OPTIONAL = {
    "openvino-genai": ("fast rewriting on a CPU", "pip install 'fedsdr[openvino]'"),
    "vllm": ("fast rewriting on CUDA", "pip install 'fedsdr[vllm]'"),
    "openai": ("rewriting through an endpoint", "pip install 'fedsdr[openai]'"),
    "bitsandbytes": ("4- and 8-bit base models on CUDA", "pip install 'fedsdr[quantize]'"),
    "pyarrow": (".parquet files", "pip install 'fedsdr[parquet]'"),
    "gguf": (".gguf models, the embedded one too", "pip install 'fedsdr[gguf]'"),
    "scikit-learn": ("fedsdr diagnose", "pip install 'fedsdr[diagnose]'"),
    "pandas": ("tables of fedsdr.run", "pip install 'fedsdr[pandas]'"),
    "datasets": ("hub data sets", "pip install 'fedsdr[hub]'"),
    "lm-eval": ("public benchmark suites", "pip install 'fedsdr[suites]'"),
    "flwr": ("federation over several machines", "pip install 'fedsdr[flower]'"),
    "dp-accounting": ("differential privacy", "pip install 'fedsdr[dp]'"),
}
# optimum-intel is a command in an environment of its own.
OPTIMUM = ("optimum-cli", "OpenVINO for model folders", "pipx install 'optimum-intel[openvino]'")


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@overrides
@json_option
def doctor(config: Path | None, set_: tuple[str, ...], as_json: bool) -> None:
    """Report this machine's hardware and packages, and how to install what is missing.

    With CONFIG, also estimate the memory of a training step.
    """
    from fedsdr.cli.table import print_json, print_next

    found = {"machine": _machine(), "embedded": _embedded(), "optional": _optional()}
    if config:
        found["memory"] = _memory(config, set_)
    if as_json:
        print_json(found)
        return
    _print_machine(found["machine"])
    _print_packages(found)
    if config:
        _print_memory(found["memory"])
        print_next(what_the_model_sees=command_line("data", config, *set_options(set_)))
    else:
        print_next(a_configuration=command_line("init", "DIR"))


def _machine() -> dict[str, Any]:
    import torch

    from fedsdr.models.base_model import cache_folder, choose_device, choose_dtype

    device = choose_device("auto")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        name, memory = f"cpu ({torch.backends.cpu.get_cpu_capability()})", None
    cache = existing = cache_folder()
    while not existing.exists():
        existing = existing.parent
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "device": name,
        "device_bytes": memory,
        "dtype": str(choose_dtype("auto", device)),
        "cache": str(cache),
        "cache_bytes_free": shutil.disk_usage(existing).free,
    }


def _print_machine(machine: Mapping[str, Any]) -> None:
    print("python {python}, torch {torch}, {cores} cores".format_map(machine))
    memory = machine["device_bytes"]
    size = f", {memory / 2**30:.0f} GiB" if memory else ""
    print(f"device: {machine['device']}{size}; base in {machine['dtype']}")
    print(f"cache: {machine['cache']} ({machine['cache_bytes_free'] / 2**30:.0f} GiB free)")


def _embedded() -> dict[str, dict[str, Any]]:
    from fedsdr.embedded_packages import INSTALL, PACKAGES, missing_packages

    missing = missing_packages()
    return {
        pypi: {"installed": pypi not in missing, "purpose": content, "install": INSTALL}
        for pypi, content in PACKAGES.values()
    }


def _optional() -> dict[str, dict[str, Any]]:
    found = {}
    for package, (purpose, install) in OPTIONAL.items():
        found[package] = {"installed": _version_of(package), "purpose": purpose, "install": install}
    command, purpose, install = OPTIMUM
    here = shutil.which(command) is not None
    return found | {command: {"installed": here, "purpose": purpose, "install": install}}


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _print_packages(found: Mapping[str, Mapping[str, Any]]) -> None:
    print("\nembedded model and data:")
    for pypi, entry in found["embedded"].items():
        print(f"  {'ok     ' if entry['installed'] else 'missing'} {pypi}: {entry['purpose']}")
    if missing := [entry for entry in found["embedded"].values() if not entry["installed"]]:
        print(f"  -> {missing[0]['install']}")
    print("\noptional:")
    for name, entry in found["optional"].items():
        number = f" {entry['installed']}" if isinstance(entry["installed"], str) else ""
        if entry["installed"]:
            print(f"  ok      {name}{number}: {entry['purpose']}")
        else:
            print(f"  missing {name}: {entry['purpose']} -> {entry['install']}")


def _memory(path: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return the bytes of a training step by part, None for what cannot be known."""
    from fedsdr.models.base_model import choose_device
    from fedsdr.models.memory import choose_pack, free_memory

    config = load_checked(path, overrides)
    train = config.train
    pack_tokens, estimate = choose_pack(config)
    parts = None
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
    return {
        "step_bytes": parts,
        "free_bytes": free_memory(choose_device(config.model.device)),
        "pack_tokens": pack_tokens,
        "pack_tokens_chosen": not train.pack_tokens,
        "checkpointing": train.checkpointing,
    }


def _print_memory(memory: Mapping[str, Any]) -> None:
    print("\nmemory of a training step:")
    for part, size in (memory["step_bytes"] or {}).items():
        print(f"  {size / 2**20:9,.0f} MiB  {part}")
    if memory["step_bytes"] is None:
        print("  unknown: the step of this model depends on its data")
    free = memory["free_bytes"]
    print("  free memory unknown" if free is None else f"  {free / 2**20:9,.0f} MiB  free")
    automatic = "automatic (train.pack_tokens = 0)"
    source = automatic if memory["pack_tokens_chosen"] else "from train.pack_tokens"
    checkpointing = str(memory["checkpointing"]).lower()
    print(f"pack size: {memory['pack_tokens']:,} tokens, {source}; checkpointing: {checkpointing}")
