"""Aggregations for hostile or broken clients. They hold all updates of a round in memory.

Coordinate-wise rules look at A and B alone, but harmless-looking factors can have a harmful
product (Gradient Assembly Poisoning, arXiv 2601.00566). So every rule here also looks at
P_k = B_k A_k - B A, the change of the product by client k.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedsdr.algorithms.combining import Combined, RoundContext, Updates, mean
from fedsdr.algorithms.low_rank import product_change_grams
from fedsdr.tensors import Tensors

LONGEST = 3.0  # times the median norm of the P_k
FURTHEST = (
    3.0  # standard deviations below the median agreement, estimated from the median deviation
)
MAD_TO_DEVIATION = 1.4826  # of a normal distribution


def median(updates: Updates, context: RoundContext) -> Combined:
    """Return the coordinate-wise median of the updates that are no `product_outliers`.

    For an even number it is the mean of the two middle values. All updates have the same weight.

    Reference: Yin et al., ICML 2018, arXiv 1803.01498.
    """
    return _trimmed(updates, context, lambda count: (count - 1) // 2)


def trimmed_mean(updates: Updates, context: RoundContext) -> Combined:
    """Return the coordinate-wise mean without the largest and the smallest values.

    Of n updates that are no `product_outliers`, floor(malicious_share n) values are cut at each
    end. All updates have the same weight.

    Reference: Yin et al., ICML 2018, arXiv 1803.01498.
    """
    return _trimmed(updates, context, lambda count: int(context.malicious_share * count))


def multi_krum(updates: Updates, context: RoundContext) -> Combined:
    """Return the weighted mean of the n - f updates that lie closest to their neighbours.

    f = floor(malicious_share n). The score of an update is the sum of its n - f - 2 smallest
    distances to others; the f largest scores are left out. The squared distance of two updates is
    that of their factors plus that of their P_k, each divided by its median over all pairs. The
    guarantee needs n >= 2 f + 3.

    Reference: Blanchard et al., NeurIPS 2017, arXiv 1703.02757.
    """
    pairs = list(updates)
    changes = [change for change, _ in pairs]
    hostile = int(context.malicious_share * len(pairs))
    distances = _relative_distances(_factor_grams(changes))
    distances += _relative_distances(product_change_grams(context.shared, changes))
    scores = krum_scores(distances, hostile)
    order = scores.argsort(stable=True).tolist()
    left_out = {
        i: f"Krum score {scores[i]:.3g}, the median is {scores.quantile(0.5):.3g}"
        for i in order[len(order) - hostile :]
    }
    kept = [pair for i, pair in enumerate(pairs) if i not in left_out]
    used = [float(i not in left_out) for i in range(len(pairs))]
    return Combined(mean(kept, context).pseudo_gradient, left_out, used)


def krum_scores(squared_distances: Tensor, hostile: int) -> Tensor:
    """Return, per update, the sum of the n - f - 2 (at least 1) smallest distances to others."""
    others = squared_distances.clone().fill_diagonal_(torch.inf)
    return others.sort(dim=1).values[:, : max(1, len(others) - hostile - 2)].sum(1)


def product_outliers(grams: Tensor) -> dict[int, str]:
    """Return the updates whose P_k is too long or points away from the others, with the reason.

    Too long: over 3 times the median norm. Pointing away: its agreement, the median cosine with
    the other P_k, is negative and over 3 deviations below the median agreement, where a deviation
    is 1.4826 times the median absolute one. `grams` holds the inner products of the P_k. Fewer
    than three updates have no outlier. Each test alone leaves out less than half.
    """
    if len(grams) < 3:
        return {}
    norms = grams.diagonal().clamp(min=0).sqrt()
    typical = norms.quantile(0.5)
    cosines = grams / (norms[:, None] * norms).clamp(min=torch.finfo(grams.dtype).tiny)
    agreement = cosines.fill_diagonal_(torch.nan).nanquantile(0.5, dim=1)
    centre = agreement.quantile(0.5)
    deviation = MAD_TO_DEVIATION * (agreement - centre).abs().quantile(0.5)
    least = min(0.0, float(centre - FURTHEST * deviation))
    found = {}
    for i, (size, cosine) in enumerate(zip(norms.tolist(), agreement.tolist(), strict=True)):
        if size > LONGEST * typical:
            found[i] = f"its product B A changes by {size:.3g}, the median is {typical:.3g}"
        elif cosine < least:
            found[i] = f"its product B A points away from the others (median cosine {cosine:.2f})"
    return found


def _trimmed(updates: Updates, context: RoundContext, cut_of: Callable[[int], int]) -> Combined:
    """Return the coordinate-wise mean without `cut_of(n)` values at each end."""
    changes = [change for change, _ in updates]
    left_out = product_outliers(product_change_grams(context.shared, changes))
    kept = [i for i in range(len(changes)) if i not in left_out]
    cut = cut_of(len(kept))
    result: Tensors = {}
    counts = torch.zeros(len(changes), dtype=torch.int64)
    for name in changes[0]:
        values = torch.stack([changes[i][name].double() for i in kept])
        values, order = values.sort(dim=0, stable=True)
        middle = slice(cut, len(kept) - cut)
        result[name] = values[middle].mean(0).float()
        counts += torch.tensor(kept)[order[middle].flatten()].bincount(minlength=len(changes))
    size = sum(x.numel() for x in result.values())
    return Combined(result, left_out, [count / size for count in counts.tolist()])


def _factor_grams(changes: list[Tensors]) -> Tensor:
    """Return the inner products of the updates over all their values."""
    grams = torch.zeros(len(changes), len(changes), dtype=torch.float64)
    for name in changes[0]:
        flat = torch.stack([change[name].double().flatten() for change in changes])
        grams += flat @ flat.T
    return grams


def _relative_distances(grams: Tensor) -> Tensor:
    """Return ||x_i - x_j||^2 divided by its median over all pairs, from inner products."""
    squared = grams.diagonal()
    distances = (squared[:, None] + squared - 2 * grams).clamp(min=0)
    rows, columns = torch.triu_indices(len(grams), len(grams), offset=1)
    pairs = distances[rows, columns]
    typical = float(pairs.quantile(0.5)) if len(pairs) else 0.0
    return distances / typical if typical else distances
