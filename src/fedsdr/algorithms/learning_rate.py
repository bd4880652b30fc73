"""The learning rate of each round, by the name of its schedule."""

import math
from collections.abc import Callable
from dataclasses import replace

from fedsdr.errors import choose
from fedsdr.types import LocalSettings

# Progress, from 0 in the first round after the warm-up towards 1 -> the share of the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
}


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
