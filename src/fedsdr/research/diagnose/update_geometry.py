"""How alike what clients learn is: cosines between named tensors, and means off the diagonal."""

from collections.abc import Mapping, Sequence

import torch

from fedsdr.tensors import Tensors, norm


def cosine_of(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float | None:
    """Return the cosine over all elements of two trees of the same names, in fp64; None where one
    of them is zero or empty."""
    norms = norm(a) * norm(b)
    if not norms:
        return None
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a) / norms


def cosines(trees: Sequence[Tensors]) -> list[list[float | None]]:
    """Return the matrix of cosines between all of them."""
    return [[cosine_of(a, b) for b in trees] for a in trees]


def off_diagonal(matrix: Sequence[Sequence[float | None]]) -> float | None:
    """Return the mean of the values that are there off the diagonal; None of none."""
    values = [
        value
        for i, row in enumerate(matrix)
        for j, value in enumerate(row)
        if i != j and value is not None
    ]
    return sum(values) / len(values) if values else None
