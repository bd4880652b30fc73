"""Read and write branches as PEFT LoRA adapters, which load without fedsdr."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedsdr.config import LoraConfig
from fedsdr.file_reading import RESTORE, read_tensors
from fedsdr.files import write_folder
from fedsdr.models.lora_layers import of_layer
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
    values: Tensors, branch: Branch, *, lora: LoraConfig, base_name: str, joined: int = 1
) -> dict[str, object]:
    """Return the content of adapter_config.json for one branch, made by PEFT's LoraConfig.

    `joined` branches in one have their rank times as large, and alpha keeps their scale. Layers of
    another rank or alpha than the first one's are in the patterns. Target modules are full names,
    so that no other module matches; they are sorted, because PEFT holds them in a set.
    """
    import peft

    ranks = {
        name.removeprefix(f"{branch}/").removesuffix(".lora_A"): value.shape[0]
        for name, value in values.items()
        if name.startswith(f"{branch}/") and name.endswith(".lora_A")
    }
    factor = math.sqrt(joined) if lora.rslora and joined > 1 else joined
    alphas = {name: factor * of_layer(lora.alpha_pattern, name, lora.alpha) for name in ranks}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT accepts floats
        use_rslora=lora.rslora,
        rank_pattern={name: r for name, r in ranks.items() if r != rank},
        alpha_pattern={name: a for name, a in alphas.items() if a != alpha},
        target_modules=list(ranks),
        inference_mode=True,
    )
    return {**config.to_dict(), "target_modules": sorted(ranks)}


def adapter_parts(
    values: Tensors, branches: Sequence[Branch], *, lora: LoraConfig, base_name: str
) -> tuple[Tensors, dict[str, object]]:
    """Return the tensors and the configuration of one PEFT adapter, the sum of branches."""
    one = join_branches(values, branches)
    config = peft_config(one, R, lora=lora, base_name=base_name, joined=len(branches))
    return peft_tensors(one, R), config


def save_adapter(
    folder: Path, values: Tensors, branches: Sequence[Branch], *, lora: LoraConfig, base_name: str
) -> None:
    """Write the sum of branches as one PEFT adapter into `folder`, atomically."""
    parts = adapter_parts(values, branches, lora=lora, base_name=base_name)
    write_folder(folder, lambda new: write_adapter_files(new, *parts))


def join_branches(values: Tensors, branches: Sequence[Branch]) -> Tensors:
    """Return one branch, named R, whose product BA is the sum of those of `branches`.

    A = [A_R; A_S], B = [B_R | B_S], so BA = B_R A_R + B_S A_S with the sum of the ranks.
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
