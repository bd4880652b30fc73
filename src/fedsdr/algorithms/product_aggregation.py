"""Aggregation of the products B A instead of the factors, and clients of a smaller rank.

The server's state stays a pair of factors of rank r, and every product has many such pairs:
(B G^-1) (G A). So that the server optimizer sees a small change of factors from round to round,
one pair is chosen: A has orthogonal rows of one length, that of the present A on average, and is
turned as close to the present A as it can be; B holds the rest.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedsdr.algorithms.combining import Combined, RoundContext, Updates
from fedsdr.algorithms.low_rank import factors_of, low_rank_svd, modules_of
from fedsdr.tensors import Tensors, add


def product_mean(updates: Updates, context: RoundContext) -> Combined:
    """Return the change of factors to the weighted mean of the clients' products.

    Per module, M = sum_k p_k B_k A_k, and R + D holds the closest matrix of R's rank to M: its thin
    SVD, computed from the stacked factors of all clients. `product_lost` is the norm of what is cut
    off, relative to M, over all modules. The factors of all clients are in memory.

    Clients may have ranks of their own. Component j of M then is the mean over the clients that
    have a component j, or that of the server where none has; a mean over all clients would make
    the components of high rank shrink every round.

    References: FlexLoRA, arXiv 2402.11505; weights by rank partition: raFLoRA, arXiv 2602.13486.
    """
    own = [(add(change, context.start(rank_of(change))), weight) for change, weight in updates]
    most = max(rank_of(factors) for factors, _ in own)
    full = rank_of(context.shared)
    server = leading_part(context.shared, full) if most < full else context.shared
    change: Tensors = {}
    cut = whole = 0.0
    for module in modules_of(context.shared):
        b, a = _stacked(
            [factors_of(factors, module) for factors, _ in own],
            [weight for _, weight in own],
            factors_of(server, module),
        )
        svd = low_rank_svd(b, a)
        present = factors_of(context.shared, module)
        rank, squares = len(present[1]), svd[1].square()
        cut, whole = cut + float(squares[rank:].sum()), whole + float(squares.sum())
        new_b, new_a = _factors_near(svd, present)
        change[f"{module}.lora_A"] = (new_a - present[1]).float()
        change[f"{module}.lora_B"] = (new_b - present[0]).float()
    lost = (cut / whole) ** 0.5 if whole else 0.0
    return Combined({name: change[name] for name in context.shared}, facts={"product_lost": lost})


def leading_part(shared: Mapping[str, Tensor], rank: int) -> Tensors:
    """Return factors of the product's closest matrix of this rank, the largest component first.

    The rows of A are orthogonal and as long as those of the present A on average.
    """
    part: Tensors = {}
    for module in modules_of(shared):
        b, a = factors_of(shared, module)
        u, s, vh = low_rank_svd(b, a)
        size = _mean_row_length(a)
        part[f"{module}.lora_A"] = (size * vh[:rank]).float().contiguous()
        part[f"{module}.lora_B"] = (u * s / size)[:, :rank].float().contiguous()
    return {name: part[name] for name in shared}


def rank_of(factors: Mapping[str, Tensor]) -> int:
    """Return the rank of factors, that of the first A."""
    return next(x.shape[0] for name, x in factors.items() if name.endswith("lora_A"))


def _stacked(
    clients: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float],
    server: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return (B, A) whose product is M, from (B_k, A_k) and the server's own factors.

    Column j of B_k is divided by the weight of all clients that have a column j.
    """
    totals = torch.zeros(len(server[1]), dtype=torch.float64)
    for (_, a), weight in zip(clients, weights, strict=True):
        totals[: len(a)] += weight
    most = max(len(a) for _, a in clients)
    left = [b * (w / totals[: len(a)]) for (b, a), w in zip(clients, weights, strict=True)]
    return (
        torch.cat([*left, server[0][:, most:]], dim=1),
        torch.cat([*(a for _, a in clients), server[1][most:]]),
    )


def _factors_near(
    svd: tuple[Tensor, Tensor, Tensor], present: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return (B, A) of the present rank r with B A = U_r S_r V_r^T, A near the present one."""
    a = present[1]
    u, s, vh = (x[..., : len(a)] if i < 2 else x[: len(a)] for i, x in enumerate(svd))
    missing = len(a) - len(s)  # where out or in is smaller than r
    left = torch.nn.functional.pad(u * s, (0, missing))
    right = torch.nn.functional.pad(vh, (0, 0, 0, missing))
    turn_u, _, turn_vh = torch.linalg.svd(right @ a.T)
    turn, size = turn_u @ turn_vh, _mean_row_length(a)
    return left @ turn / size, size * turn.T @ right


def _mean_row_length(a: Tensor) -> float:
    """Return the root mean square of the lengths of A's rows, or 1 where A is zero."""
    return float(a.square().sum(1).mean().sqrt()) or 1.0
