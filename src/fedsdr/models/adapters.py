"""Read and write branches as PEFT LoRA adapters, which load without fedsdr."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedsdr.file_reading import RESTORE, read_tensors
from fedsdr.files import write_folder
from fedsdr.tensors import Tensors
from fedsdr.types import Branch, R

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # of PEFT's parameter names


def peft_tensors(values: Tensors, branch: Branch) -> Tensors:
    """Return one branch's factors under PEFT's names.

    `R/model.layers.0.q_proj.lora_A` -> `base_model.model.model.layers.0.q_proj.lora_A.weight`
    """
    own = f"{branch}/"
    return {
        f"{PREFIX}{name.removeprefix(own)}.weight": value.contiguous()
        for name, value in values.items()
        if name.startswith(own)
    }


def peft_config(
    values: Tensors, branch: Branch, *, alpha: float, base_name: str
) -> dict[str, object]:
    """Return the content of adapter_config.json for one branch, made by PEFT's LoraConfig.

    Target modules are full names, so that no other module matches; they are sorted, because PEFT
    holds them in a set.
    """
    from peft import LoraConfig

    factors = {
        name.removeprefix(f"{branch}/").removesuffix(".lora_A"): value
        for name, value in values.items()
        if name.startswith(f"{branch}/") and name.endswith(".lora_A")
    }
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        r=next(iter(factors.values())).shape[0],
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT accepts floats
        target_modules=list(factors),
        inference_mode=True,
    )
    return {**config.to_dict(), "target_modules": sorted(factors)}


def save_adapter(
    folder: Path, values: Tensors, branches: Sequence[Branch], *, alpha: float, base_name: str
) -> None:
    """Write the sum of branches as one PEFT adapter into `folder`, atomically."""
    joined = join_branches(values, branches)
    config = peft_config(joined, R, alpha=alpha * len(branches), base_name=base_name)
    write_folder(folder, lambda new: write_adapter_files(new, peft_tensors(joined, R), config))


def join_branches(values: Tensors, branches: Sequence[Branch]) -> Tensors:
    """Return one branch, named R, whose product BA is the sum of those of `branches`.

    A = [A_R; A_S], B = [B_R | B_S], so BA = B_R A_R + B_S A_S with the sum of the ranks. Scaling
    alpha with the number of branches keeps alpha / r.
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
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def load_adapter(folder: Path, branch: Branch) -> Tensors:
    """Read a PEFT adapter as the factors of `branch`. UserError if it is missing or damaged."""
    tensors = read_tensors(folder / WEIGHTS, RESTORE)
    return {
        f"{branch}/{name.removeprefix(PREFIX).removesuffix('.weight')}": value
        for name, value in tensors.items()
    }
