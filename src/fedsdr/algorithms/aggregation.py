"""What it costs to combine low-rank factors one by one.

Averaging A and B separately (`tensors.WeightedMean`; FedIT; the paper's Eq. 10) is not averaging
their product BA; `product_error` says how far apart the two are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ProductError:
    """Relative Frobenius errors: of every module by its name, and of all of them together."""

    total: float
    modules: Mapping[str, float]


def product_error(
    factors: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> ProductError:
    """Return ||mean B mean A - M|| / ||M|| with M = sum_k p_k B_k A_k, the exact mean of BA.

    `factors` are the clients' R after training (not dR), with names `MODULE.lora_A` of shape
    (r, in) and `MODULE.lora_B` of shape (out, r); p_k = weights_k / sum of weights. The scale
    alpha / r cancels. The total is the norm over all modules of the difference over that of M.
    The error is 0 where both are zero and infinite where M alone is. All clients' factors are in
    memory at once, but no out x in matrix: with K clients the largest is K r x max(in, out).
    """
    total_weight = sum(weights)
    shares = [weight / total_weight for weight in weights]
    wrong: dict[str, float] = {}
    exact: dict[str, float] = {}
    for module in dict.fromkeys(name.rpartition(".")[0] for name in factors[0]):
        a = [f[f"{module}.lora_A"].double() for f in factors]
        b = [f[f"{module}.lora_B"].double() for f in factors]
        # M - mean B mean A = sum_k p_k (B_k - mean B) (A_k - mean A), which loses no digits when
        # the clients are close to each other.
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
    """Return the quotient of the two norms, given squared."""
    if exact == 0.0:
        return 0.0 if wrong == 0.0 else float("inf")
    return (wrong / exact) ** 0.5
