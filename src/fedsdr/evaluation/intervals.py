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

import numpy as np

Interval = list[float]  # [low, high]


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
