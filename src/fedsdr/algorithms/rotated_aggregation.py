"""Aggregation after a rotation of each client's factors towards the last global ones.

(B Q) (Q^T A) = B A for every orthogonal Q: clients can hold the same product in different factors,
whose mean is then wrong. A rotation leaves every client's product as it is and brings the factors
closer to each other.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedsdr.algorithms.combining import Combined, RoundContext, Updates, mean
from fedsdr.algorithms.low_rank import factors_of, modules_of
from fedsdr.tensors import Tensors, add

SOFTNESS = 0.5  # 0: no rotation, 1: the whole one


def rotated_mean(updates: Updates, context: RoundContext) -> Combined:
    """Return the mean of the updates, each rotated towards the global factors of the round.

    Per module, Q is the rotation that brings A_k (odd rounds) or B_k (even rounds) closest to the
    global one. It is softened to the orthogonal matrix closest to (1 - s) I + s Q with s = 0.5.
    One update is in memory at a time.

    Reference: FedRot-LoRA, arXiv 2602.23638.
    """

    def rotated() -> Iterator[tuple[Tensors, float]]:
        for change, weight in updates:
            yield _rotated_change(change, context), weight

    return mean(rotated(), context)


def softened_rotation(correlation: Tensor, softness: float = SOFTNESS) -> Tensor:
    """Return the softened rotation of a Procrustes problem.

    For `correlation` = X^T Y, the Q without reflection that minimises ||X Q - Y|| is taken, then
    the orthogonal matrix closest to (1 - softness) I + softness Q.
    """
    u, _, vh = torch.linalg.svd(correlation)
    if torch.linalg.det(u @ vh) < 0:  # halfway to a reflection lies a singular matrix
        u[:, -1] *= -1
    identity = torch.eye(len(u), dtype=u.dtype)
    u, _, vh = torch.linalg.svd((1 - softness) * identity + softness * (u @ vh))
    return u @ vh


def _rotated_change(change: Mapping[str, Tensor], context: RoundContext) -> Tensors:
    own = add(change, context.shared)
    after: Tensors = {}
    for module in modules_of(own):
        (b, a), (global_b, global_a) = factors_of(own, module), factors_of(context.shared, module)
        correlation = a @ global_a.T if context.round % 2 else b.T @ global_b
        if correlation.any():
            q = softened_rotation(correlation)
            b, a = b @ q, q.T @ a
        after[f"{module}.lora_A"] = (a - global_a).float()
        after[f"{module}.lora_B"] = (b - global_b).float()
    return {name: after[name] for name in change}
