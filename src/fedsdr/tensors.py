"""Arithmetic over named tensors. Sums are fp64, results fp32, whatever the training dtype."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def map_tensors(f: Callable[..., Tensor], *trees: Mapping[str, Tensor]) -> Tensors:
    """Apply `f` to the tensors of each name. ValueError when the names differ."""
    first = trees[0]
    for other in trees[1:]:
        if other.keys() != first.keys():
            raise ValueError(f"names differ: {sorted(other.keys() ^ first.keys())[:3]}")
    return {name: f(*(tree[name] for tree in trees)) for name in first}


def zeros_like(a: Mapping[str, Tensor]) -> Tensors:
    """Return fp32 zeros of the same names and shapes."""
    return map_tensors(lambda x: torch.zeros_like(x, dtype=torch.float32), a)


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensors:
    """Return a + b."""
    return map_tensors(torch.add, a, b)


def subtract(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensors:
    """Return a - b."""
    return map_tensors(torch.sub, a, b)


def scale(a: Mapping[str, Tensor], by: float) -> Tensors:
    """Return by * a."""
    return map_tensors(lambda x: x * by, a)


def norm(a: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm over all elements, summed in fp64."""
    return sum(float(x.double().square().sum()) for x in a.values()) ** 0.5


def num_bytes(a: Mapping[str, Tensor]) -> int:
    """Return the size of the values in bytes, without names or framing."""
    return sum(x.numel() * x.element_size() for x in a.values())


def all_finite(a: Mapping[str, Tensor]) -> bool:
    """Return whether no value is infinite or NaN."""
    # The extremes of a tensor show it in one pass; a NaN is the extreme of any tensor that has one.
    return all(
        bool(torch.isfinite(torch.stack(x.aminmax())).all()) for x in a.values() if x.numel()
    )


def difference_in_spec(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str:
    """Return the first difference of `a` from `b` in names, shapes or dtypes, or '' for none."""
    for name in sorted(b.keys() - a.keys()):
        return f"lacks '{name}'"
    for name in sorted(a.keys() - b.keys()):
        return f"has an unexpected tensor '{name[:100]}'"
    for name, x in a.items():
        if x.shape != b[name].shape:
            return f"'{name}' has shape {tuple(x.shape)}, not {tuple(b[name].shape)}"
        if x.dtype != b[name].dtype:
            return f"'{name}' is {_dtype(x)}, not {_dtype(b[name])}"
    return ""


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


class WeightedMean:
    """A running sum_k w_k x_k / sum_k w_k in fp64, with one term in memory at a time.

    The result is fp32. Its last bit depends on the order of the terms: add them in a fixed order.
    """

    def __init__(self) -> None:
        self._sums: Tensors = {}
        self.total_weight = 0.0

    def add(self, values: Mapping[str, Tensor], weight: float) -> None:
        """Add one term. ValueError when its names or shapes differ from those of the first."""

        def add_in_place(total: Tensor, x: Tensor) -> Tensor:
            if total.shape != x.shape:  # add_ would broadcast a smaller one
                raise ValueError(f"shape {tuple(x.shape)}, not {tuple(total.shape)}")
            return total.add_(x, alpha=weight)  # one pass over memory, in fp64

        if self.total_weight == 0.0:
            self._sums = map_tensors(lambda x: x.double() * weight, values)
        else:
            map_tensors(add_in_place, self._sums, values)
        self.total_weight += weight

    def result(self) -> Tensors:
        """Return the mean in fp32; ValueError when nothing was added."""
        if self.total_weight <= 0.0:
            raise ValueError("the mean of no updates is not defined")
        return map_tensors(lambda x: (x / self.total_weight).float(), self._sums)


class MeanCosine:
    """The mean cosine of all pairs of x_1 .. x_K, with one of them in memory at a time.

    It is (||sum_k x_k / ||x_k|| ||^2 - K) / (K (K - 1)).
    """

    def __init__(self) -> None:
        self._units = WeightedMean()

    def add(self, values: Mapping[str, Tensor], size: float) -> None:
        """Add a vector of norm `size`; a zero vector has no direction and is left out."""
        if size:
            self._units.add(scale(values, 1 / size), 1)

    def result(self) -> float | None:
        """Return the mean, or None for fewer than two vectors."""
        count = self._units.total_weight
        if count < 2:
            return None
        return (count * norm(self._units.result()) ** 2 - 1) / (count - 1)
