"""Products B A of low-rank factors, computed without an out x in matrix.

Factors are named MODULE.lora_A, of shape (r, in), and MODULE.lora_B, of shape (out, r). All
arithmetic is fp64. The scale alpha / r is the same for all clients and left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def modules_of(factors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the modules, in their order."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in factors))


def factors_of(factors: Mapping[str, Tensor], module: str) -> tuple[Tensor, Tensor]:
    """Return (B, A) of a module in fp64; KeyError when one of them is missing."""
    return factors[f"{module}.lora_B"].double(), factors[f"{module}.lora_A"].double()


def low_rank_svd(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD (U, S, V^T) of B A, through the QR of both factors.

    B is (out, n) and A is (n, in); at most min(n, out, in) singular values come back.
    """
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ u, s, vh @ q_a.T


def product_change_grams(
    shared: Mapping[str, Tensor], updates: Sequence[Mapping[str, Tensor]]
) -> Tensor:
    """Return the (K, K) inner products of P_1 .. P_K over all modules.

    P_k = (B + dB_k) (A + dA_k) - B A is the change of the product by update k.
    """
    count = len(updates)
    grams = torch.zeros(count, count, dtype=torch.float64)
    for module in modules_of(shared):
        b, a = factors_of(shared, module)
        changes = [factors_of(update, module) for update in updates]
        # P_k = dB_k (A + dA_k) + B dA_k does not cancel when the changes are small.
        left = torch.cat([x for db, _ in changes for x in (db, b)], dim=1)
        right = torch.cat([x for _, da in changes for x in (a + da, da)])
        blocks = (left.T @ left) * (right @ right.T)
        grams += blocks.view(count, len(blocks) // count, count, -1).sum((1, 3))
    return grams


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

    `factors` are the clients' R after training (not dR), and p_k = weights_k / sum of weights. The
    total takes both norms over all modules. The error is 0 where both norms are zero and infinite
    where only that of M is. The factors of all clients are in memory, but no out x in matrix: with
    K clients the largest is K r x max(in, out).
    """
    total_weight = sum(weights)
    shares = [weight / total_weight for weight in weights]
    wrong: dict[str, float] = {}
    exact: dict[str, float] = {}
    for module in modules_of(factors[0]):
        pairs = [factors_of(f, module) for f in factors]
        b, a = [b for b, _ in pairs], [a for _, a in pairs]
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
