"""95 % confidence intervals over test rows: Wilson for 0/1 scores, bootstrap for graded ones.

They cover the choice of test rows, not the training seed. A bootstrap of a few 0/1 rows is wrong in
both directions: three correct rows give [1, 1], one of three gives [0, 1]. Wilson's interval holds
its level even for a single row. Graded scores that are all equal, or a single one, give a point,
which says nothing about the spread.

References: Wilson, "Probable inference", JASA 22, 1927. Efron and Tibshirani, "An introduction to
the bootstrap", 1993, chapter 13. Zou, Huang and Zhang, "Construction of confidence limits about
effect measures", Statistics in Medicine 28, 2009 (MOVER).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Interval = list[float]  # [low, high]
Pair = tuple[float, float]  # numerator and denominator of one row


def score_interval(scores: Sequence[float], seed: int, *, binary: bool) -> Interval:
    """Return Wilson's interval of the mean if scores are 0 or 1, else the bootstrap interval."""
    if not binary:
        return bootstrap_interval(scores, seed)
    from scipy import stats  # slow to import

    found = stats.binomtest(round(sum(scores)), len(scores)).proportion_ci(method="wilson")
    return [float(found.low), float(found.high)]


def bootstrap_interval(
    values: Sequence[float], seed: int, level: float = 0.95, resamples: int = 2000
) -> Interval:
    """Return the percentile bootstrap interval of the mean. ValueError if there are no values."""
    if not len(values):
        raise ValueError("the mean of no values is not defined")
    if len(values) == 1:
        return [float(values[0])] * 2
    from scipy import stats  # slow to import

    found = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=resamples,
        batch=100,  # bounds the memory
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    # Rounding may swap the bounds where all means are equal.
    return sorted((float(found.low), float(found.high)))


def ratio_interval(pairs: Sequence[Pair], seed: int) -> Interval:
    """Return the interval of sum(numerators) / sum(denominators) over rows.

    Wilson's where it is a share (numerators 0 or 1, denominators 1), else the percentile bootstrap,
    with fewer resamples the more rows there are. ValueError if there are no rows.
    """
    numbers = np.asarray(pairs, dtype=np.float64)
    if (numbers[:, 1] == 1).all() and np.isin(numbers[:, 0], (0, 1)).all():
        return score_interval(numbers[:, 0].tolist(), seed, binary=True)
    sums = _draws(len(pairs), seed) @ numbers
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return [float(low), float(high)]


def weighted_mean(
    weights: Sequence[float], means: Sequence[float], intervals: Sequence[Interval]
) -> tuple[float, Interval]:
    """Return the weighted mean of independent means, and its interval (MOVER).

    low = mean - sqrt(sum((w_i (mean_i - low_i))^2)) / sum(w_i), and high likewise.
    """
    total = math.fsum(weights)
    mean = math.fsum(w * m for w, m in zip(weights, means, strict=True)) / total
    w, low, high = np.asarray(weights), *np.asarray(intervals).T
    below, above = (np.linalg.norm(w * (np.asarray(means) - end)) / total for end in (low, high))
    return mean, [float(mean - below), float(mean + above)]


@lru_cache(maxsize=1)  # the signs of one client share the draws
def _draws(rows: int, seed: int) -> NDArray[np.int64]:
    """Return how often each resample has each row, (resamples, rows)."""
    resamples = max(200, min(2000, 10**7 // rows))
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples)
