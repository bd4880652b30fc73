"""The client's optimizer, by name."""

from collections.abc import Callable, Iterable

from torch import nn, optim

from fedsdr.errors import choose
from fedsdr.types import LocalSettings

Build = Callable[..., optim.Optimizer]  # (parameters, lr=, weight_decay=)
OPTIMIZERS: dict[str, Build] = {
    "adamw": optim.AdamW,
    "sgd": optim.SGD,
    "adafactor": optim.Adafactor,
}


def optimizer_of(parameters: Iterable[nn.Parameter], settings: LocalSettings) -> optim.Optimizer:
    """Return a new optimizer with PyTorch's defaults for all but `lr` and `weight_decay`."""
    build = choose(settings.optimizer, OPTIMIZERS, "train.optimizer")
    return build(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
