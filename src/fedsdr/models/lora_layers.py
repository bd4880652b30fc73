"""How the factors of each layer are sized, scaled and started, as PEFT does for a LoraConfig."""

import math
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedsdr.errors import UserError

T = TypeVar("T")


def of_layer(patterns: Mapping[str, T], name: str, default: T) -> T:
    """Return the value of the first pattern that matches the end of a layer's full name."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def scale_of(alpha: float, rank: int, rslora: bool) -> float:
    """Return alpha / r, or alpha / sqrt(r) of rank-stabilised LoRA (arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def check_patterns(patterns: Mapping[str, object], layers: Mapping[str, object], key: str) -> None:
    """UserError for a pattern that is no regular expression or matches no adapted layer."""
    for pattern in patterns:
        try:
            matches = any(of_layer({pattern: True}, name, False) for name in layers)
        except re.error as error:
            raise UserError(f"{key}: '{pattern}' is not a regular expression ({error})") from None
        if not matches:
            raise UserError(f"{key}: '{pattern}' matches no adapted layer; see lora.target_modules")


def _uniform(a: Tensor, generator: torch.Generator) -> None:
    nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)


def _gaussian(a: Tensor, generator: torch.Generator) -> None:
    nn.init.normal_(a, std=1 / len(a), generator=generator)


# How A, of shape (r, in), starts, as PEFT does for `init_lora_weights`.
INITS: dict[str, Callable[[Tensor, torch.Generator], None]] = {
    "kaiming": _uniform,  # uniform in ±1/sqrt(in), the paper's and PEFT's default
    "gaussian": _gaussian,  # standard deviation 1/r
}
