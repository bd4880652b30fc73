"""The client's optimizer and the learning rate of each round, by name."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn, optim

from fedsdr.errors import choose
from fedsdr.types import LocalSettings

Build = Callable[..., optim.Optimizer]  # (parameters, lr=, weight_decay=)
OPTIMIZERS: dict[str, Build] = {
    "adamw": optim.AdamW,
    "sgd": optim.SGD,
    "adafactor": optim.Adafactor,
}
# Progress, from 0 in the first round after the warm-up towards 1 -> the share of the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
}


def optimizer_of(parameters: Iterable[nn.Parameter], settings: LocalSettings) -> optim.Optimizer:
    """Return a new optimizer with PyTorch's defaults for all but `lr` and `weight_decay`."""
    build = choose(settings.optimizer, OPTIMIZERS, "train.optimizer")
    return build(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def with_rate_of(settings: LocalSettings, round: int) -> LocalSettings:
    """Return the settings with the learning rate of a round, which counts from 1.

    In W warm-up rounds of T it is lr * round / (W + 1); then lr * schedule(p) with
    p = (round - 1 - W) / (T - W), so no round has the rate 0. Training after the last round has lr.
    """
    schedule = choose(settings.schedule, SCHEDULES, "train.schedule")
    warmup = settings.warmup_rounds
    if settings.afterwards or (settings.schedule == "constant" and not warmup):
        return settings
    if round <= warmup:
        share = round / (warmup + 1)
    else:
        share = schedule((round - 1 - warmup) / max(settings.rounds - warmup, 1))
    return replace(settings, lr=settings.lr * share)
