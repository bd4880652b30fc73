"""Bootstrap percentile intervals: how far a mean over a few test rows can be trusted.

They show the spread from the choice of test rows, not from the seed of the training. Where all
values are equal, or there is one alone, the interval is that point: then it says nothing.
Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Means = NDArray[np.float64]


def resampled_means(values: Sequence[float], seed: int, resamples: int = 2000) -> Means:
    """Return the means of `resamples` samples of len(values), drawn with replacement."""
    if not len(values):
        raise ValueError("the mean of no values is not defined")
    x = np.asarray(values, dtype=np.float64)
    draw = np.random.default_rng(seed)
    # One at a time: all at once would need resamples x len(values) numbers in memory.
    return np.array([x[draw.integers(x.size, size=x.size)].mean() for _ in range(resamples)])


def percentile_interval(means: Means, level: float = 0.95) -> list[float]:
    """Return [low, high], the (1 - level) / 2 and (1 + level) / 2 quantiles."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def bootstrap_interval(
    values: Sequence[float], seed: int, level: float = 0.95, resamples: int = 2000
) -> list[float]:
    """Return the interval of the mean of `values`. ValueError when there are none."""
    return percentile_interval(resampled_means(values, seed, resamples), level)
