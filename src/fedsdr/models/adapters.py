"""A branch on disk is exactly a PEFT LoRA adapter: no code of ours is needed to load it."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedsdr.errors import UserError
from fedsdr.files import write_folder
from fedsdr.tensors import Tensors
from fedsdr.types import Branch, R

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def peft_tensors(values: Tensors, branch: Branch) -> Tensors:
    """Return the factors of one branch under PEFT's names.

    `R/model.layers.0.q_proj.lora_A` -> `base_model.model.model.layers.0.q_proj.lora_A.weight`
    """
    prefix = f"{branch}/"
    return {
        f"base_model.model.{name.removeprefix(prefix)}.weight": value.contiguous()
        for name, value in values.items()
        if name.startswith(prefix)
    }


def peft_config(
    values: Tensors, branch: Branch, *, alpha: float, base_name: str
) -> dict[str, object]:
    """Return PEFT's adapter_config.json for these factors.

    Target modules are written as full names, so that nothing else matches by accident.
    """
    own = peft_tensors(values, branch)
    factors = {name: v for name, v in own.items() if name.endswith("lora_A.weight")}
    prefix = "base_model.model."
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": next(iter(factors.values())).shape[0],
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(
            n.removeprefix(prefix).removesuffix(".lora_A.weight") for n in factors
        ),
        "inference_mode": True,
    }


def save_adapter(
    folder: Path, values: Tensors, branches: Sequence[Branch], *, alpha: float, base_name: str
) -> None:
    """Write the sum of branches as one PEFT adapter into `folder`, whole or not at all."""
    joined = join_branches(values, branches)
    config = peft_config(joined, R, alpha=alpha * len(branches), base_name=base_name)
    write_folder(folder, lambda new: write_adapter_files(new, peft_tensors(joined, R), config))


def join_branches(values: Tensors, branches: Sequence[Branch]) -> Tensors:
    """Return one branch, named R, whose product is the sum of the products of `branches`.

    Its rank is the sum of theirs: A = [A_R; A_S], B = [B_R | B_S], BA = B_R A_R + B_S A_S. With
    twice the rank and twice the alpha, alpha / r is the same.
    """
    names = [name[2:] for name in values if name.startswith(branches[0])]
    return {
        f"{R}/{name}": torch.cat(
            [values[f"{b}/{name}"] for b in branches], dim=0 if name.endswith("lora_A") else 1
        )
        for name in names
    }


def write_adapter_files(folder: Path, tensors: Tensors, config: dict[str, object]) -> None:
    """Write the two files of a PEFT adapter into an existing folder."""
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapter(folder: Path, branch: Branch) -> Tensors:
    """Read a PEFT adapter as the factors of `branch`. UserError when it is missing or broken."""
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{path}: no readable adapter ({error})") from None
    prefix = "base_model.model."
    return {
        f"{branch}/{name.removeprefix(prefix).removesuffix('.weight')}": value
        for name, value in tensors.items()
    }
