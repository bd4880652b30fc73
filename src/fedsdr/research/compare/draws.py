"""Intervals over draws of the data, and how many more draws would decide.

A draw decides which rows a client trains on and which it is tested on. Every variant sees the same
draws, so differences are taken within a draw (paired).
"""

import math
import statistics
from collections.abc import Sequence

from scipy import stats

MOST_DRAWS = 1000  # more than these are not counted


def paired_interval(differences: Sequence[float]) -> list[float] | None:
    """Return the 95 % interval of a mean difference over draws, by Student's t.

    `differences` has one value a draw. The noise of test rows is in the interval as far as draws
    have rows of their own; rows that they share make it too narrow. None for fewer than two draws.
    """
    if len(differences) < 2:
        return None
    half = _half_width(statistics.stdev(differences), len(differences))
    mean = statistics.fmean(differences)
    return [mean - half, mean + half]


def more_draws(differences: Sequence[float]) -> int | None:
    """Return how many more draws would take zero out of the interval if mean and spread stayed.

    0 if it is out already; None for fewer than two draws, or beyond `MOST_DRAWS` in all.
    """
    if len(differences) < 2:
        return None
    mean, sd = statistics.fmean(differences), statistics.stdev(differences)
    for draws in range(len(differences), MOST_DRAWS + 1):
        if _half_width(sd, draws) < abs(mean):
            return draws - len(differences)
    return None


def _half_width(sd: float, draws: int) -> float:
    return float(stats.t.ppf(0.975, draws - 1)) * sd / math.sqrt(draws)
