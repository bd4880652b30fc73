"""Cosines between named tensors: how similar the clients' gradients and updates are."""

from collections.abc import Mapping, Sequence

import torch

from fedsdr.tensors import Tensors, norm


def cosine_of(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float | None:
    """Return the cosine over all elements in fp64; None if one of them is zero or empty."""
    norms = norm(a) * norm(b)
    if not norms:
        return None
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a) / norms


def cosines(trees: Sequence[Tensors]) -> list[list[float | None]]:
    """Return the matrix of all pairwise cosines."""
    return [[cosine_of(a, b) for b in trees] for a in trees]


def off_diagonal(matrix: Sequence[Sequence[float | None]]) -> float | None:
    """Return the mean of the known values off the diagonal; None if there are none."""
    values = [
        value
        for i, row in enumerate(matrix)
        for j, value in enumerate(row)
        if i != j and value is not None
    ]
    return sum(values) / len(values) if values else None
