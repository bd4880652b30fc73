"""Aggregation: from the updates of a round to one pseudo-gradient.

An aggregation is a function of a stream of (update, weight) and the number of clients that were
asked. It returns the pseudo-gradient that the server optimizer steps along. The means hold one
update in memory at a time. To add one, write a function and its line in AGGREGATIONS.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsdr.algorithms.gaussian_mechanism import add_gaussian
from fedsdr.tensors import Tensors, WeightedMean, scale

Aggregation = Callable[[Iterable[tuple[Tensors, float]], int], Tensors]


def mean(updates: Iterable[tuple[Tensors, float]], num_asked: int) -> Tensors:
    """Return sum_k w_k dR_k / sum_k w_k, A and B separately (paper, Eq. 10; FedIT)."""
    total = WeightedMean()
    for update, weight in updates:
        total.add(update, weight)
    return total.result()


def noisy_mean(clip_norm: float, noise_multiplier: float) -> Aggregation:
    """Return the aggregation of central differential privacy: (sum_k dR_k + N(0, (z C)^2)) / K.

    C is `clip_norm`, the bound on each update's norm, z is `noise_multiplier`, and K is the number
    of clients that were asked: whether one of them answered may depend on its data, so the divisor
    must not show it. All updates have the same weight (McMahan et al., ICLR 2018).
    """

    def aggregate(updates: Iterable[tuple[Tensors, float]], num_asked: int) -> Tensors:
        total = WeightedMean()
        for update, _ in updates:
            total.add(update, 1.0)
        exact = scale(total.result(), total.total_weight / num_asked)
        return add_gaussian(exact, noise_multiplier * clip_norm / num_asked)

    return aggregate


AGGREGATIONS: dict[str, Aggregation] = {"mean": mean}


@dataclass(frozen=True)
class ProductError:
    """Relative Frobenius errors: of each module by its name, and of all modules together."""

    total: float
    modules: Mapping[str, float]


def product_error(
    factors: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> ProductError:
    """Return how far the mean of the factors is from the mean of their products.

    The error is ||mean B mean A - M|| / ||M|| with M = sum_k p_k B_k A_k.

    `factors` are the clients' R after training (not dR), with names `MODULE.lora_A` of shape
    (r, in) and `MODULE.lora_B` of shape (out, r); p_k = weights_k / sum of weights. The scale
    alpha / r cancels. The total takes both norms over all modules. The error is 0 where both norms
    are zero and infinite where only that of M is. The factors of all clients are in memory, but no
    out x in matrix: with K clients the largest is K r x max(in, out).
    """
    total_weight = sum(weights)
    shares = [weight / total_weight for weight in weights]
    wrong: dict[str, float] = {}
    exact: dict[str, float] = {}
    for module in dict.fromkeys(name.rpartition(".")[0] for name in factors[0]):
        a = [f[f"{module}.lora_A"].double() for f in factors]
        b = [f[f"{module}.lora_B"].double() for f in factors]
        # M - mean B mean A = sum_k p_k (B_k - mean B) (A_k - mean A). This form does not cancel
        # when the clients are close to each other.
        wrong[module] = _squared_norm(_centred(b, shares), _centred(a, shares), shares)
        exact[module] = _squared_norm(b, a, shares)
    return ProductError(
        total=_ratio(sum(wrong.values()), sum(exact.values())),
        modules={module: _ratio(wrong[module], exact[module]) for module in wrong},
    )


def _centred(xs: Sequence[Tensor], shares: Sequence[float]) -> list[Tensor]:
    mean = sum(p * x for p, x in zip(shares, xs, strict=True))
    return [x - mean for x in xs]


def _squared_norm(b: Sequence[Tensor], a: Sequence[Tensor], shares: Sequence[float]) -> float:
    """Return ||sum_k p_k B_k A_k||^2 = tr((B^T B)(A A^T)) of the stacked factors."""
    stacked_b = torch.cat([p * x for p, x in zip(shares, b, strict=True)], dim=1)
    stacked_a = torch.cat(list(a), dim=0)
    grams = (stacked_b.T @ stacked_b) * (stacked_a @ stacked_a.T)
    return max(float(grams.sum()), 0.0)


def _ratio(wrong: float, exact: float) -> float:
    """Return the ratio of two norms that are given squared."""
    if exact == 0.0:
        return 0.0 if wrong == 0.0 else float("inf")
    return (wrong / exact) ** 0.5
