"""Where the variance of a comparison comes from: draw, variant x draw, seed, test rows."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsdr.research.compare.differences import (
    Group,
    Groups,
    Sample,
    combined,
    counts,
    mean_over_clients,
)
from fedsdr.research.compare.model_values import MEASURES, Results, Values, values_of


@dataclass(frozen=True)
class Variance:
    """The variance of one run's value by where it comes from; `seed` is None with one seed.

    `draw`: moves all variants alike. `variant_by_draw`: changes the differences between variants,
    so it decides how many draws a comparison takes. `seed`: of training, with data and variant
    given. `rows`: of the finite test set, taken out of the two first.
    """

    draw: float
    variant_by_draw: float
    seed: float | None
    rows: float


def variance_rows(groups: Groups) -> list[dict[str, Any]]:
    """Return the parts of the variance (`draws.Variance`) by kind of model and measure.

    Of the groups of one algorithm and sweep point, over the samples that all of them have; none for
    fewer than two groups or draws, or where a draw lacks a seed.
    """
    rows = []
    alike: dict[Group, list[Mapping[Sample, Results]]] = {}
    for group, runs in groups.items():
        if runs:
            alike.setdefault(replace(group, variant="all"), []).append(runs)
    for place, variants in alike.items():
        samples = sorted(set.intersection(*(set(runs) for runs in variants)))
        draws, seeds = counts(samples).values()
        if len(variants) < 2 or draws < 2 or len(samples) != draws * seeds:
            continue
        for model, measure in itertools.product(("global", "client"), MEASURES):
            of = [[values_of(runs[s], model, measure) for s in samples] for runs in variants]
            shape = len(variants), draws, seeds
            means = np.array([[mean_over_clients(v) for v in row] for row in of]).reshape(shape)
            parts = variance_parts(means, *_sampling_variances(of))
            rows.append(place.place | {"model": model, "measure": measure, **asdict(parts)})
    return rows


def _sampling_variances(of: Sequence[Sequence[Values]]) -> tuple[float, float]:
    """Return the sampling variance of the variants' mean, and of one's deviation from it."""
    common, own = [], []
    for values in zip(*of, strict=True):  # of one sample, over variants
        mean = combined([(1 / len(values), one) for one in values])
        common.append(sampling_variance(mean))
        left = [sampling_variance(combined([(1, one), (-1, mean)])) for one in values]
        own.append(math.fsum(left) / (len(values) - 1))
    return statistics.fmean(common), statistics.fmean(own)


def variance_parts(
    values: NDArray[np.float64], rows_common: float = 0.0, rows_own: float = 0.0
) -> Variance:
    """Return the parts of the variance of `values`, shape (variants, draws, seeds).

    Variants are fixed, draws and seeds random: the moment estimates of a crossed two-way analysis
    of variance with replicates, negative ones set to 0 (Searle, Casella and McCulloch, "Variance
    components", 1992, section 4.3). With one seed its part cannot be told from
    `variant_by_draw`. `rows_common`: the sampling variance over test rows of the mean of the
    variants, rows_own / variants of which is not shared by them; `rows_own`: that of one variant's
    deviation from the mean. ValueError for fewer than two variants or draws.
    """
    variants, draws, seeds = values.shape
    if variants < 2 or draws < 2:
        raise ValueError("parts of the variance take at least two variants and two draws")
    cells = values.mean(axis=2)
    by_draw, by_variant, mean = cells.mean(axis=0), cells.mean(axis=1), cells.mean()
    left = cells - by_draw - by_variant[:, None] + mean
    of_draw = variants * seeds * np.sum((by_draw - mean) ** 2) / (draws - 1)
    of_both = seeds * np.sum(left**2) / ((variants - 1) * (draws - 1))
    replicates = variants * draws * (seeds - 1)
    of_seed = np.sum((values - cells[..., None]) ** 2) / replicates if replicates else 0.0
    rows_shared = rows_common - rows_own / variants
    draw = (of_draw - of_both) / (variants * seeds) - rows_shared
    both = (of_both - of_seed) / seeds - rows_own
    return Variance(
        draw=max(0.0, float(draw)),
        variant_by_draw=max(0.0, float(both)),
        seed=float(of_seed) if replicates else None,
        rows=rows_shared + rows_own,
    )


def sampling_variance(rows: Mapping[str, Mapping[str, tuple[float, float]]]) -> float:
    """Return the variance over test rows of the mean over clients of sum(n) / sum(d).

    By the delta method for a ratio, within each client (Cochran, "Sampling techniques", 1977,
    section 6.3). 0 for a client with one row, whose part cannot be estimated.
    """
    parts = []
    for pairs in rows.values():
        n, d = np.array([pair for pair in pairs.values() if pair[1]], dtype=float).T
        count, total = len(n), d.sum()
        if count > 1:
            left = n - n.sum() / total * d
            parts.append(count / (count - 1) * float(left @ left) / total**2)
    return math.fsum(parts) / len(rows) ** 2
