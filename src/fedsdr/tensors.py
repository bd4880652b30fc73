"""Arithmetic over named tensors. Sums are fp64, results fp32, whatever the training dtype."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def map_tensors(f: Callable[..., Tensor], *trees: Mapping[str, Tensor]) -> Tensors:
    """Apply `f` name by name; all trees must have the same names (else ValueError)."""
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


class ByShape:
    """Puts tensors of one shape side by side, and apart again.

    A model has hundreds of small factors of a few shapes. To check, decode and add them one by one
    costs more in calls than in arithmetic; stacked, (number, *shape), it is a few large operations
    with the same result, bit by bit.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._order = tuple(like)
        self._groups: dict[str, list[str]] = {}
        for name, x in like.items():
            self._groups.setdefault(str(tuple(x.shape)), []).append(name)

    def stack(self, values: Mapping[str, Tensor], suffix: str = "") -> Tensors:
        """Return one tensor a shape of `like`, of the values under the names of `like` + suffix."""
        return {
            shape: torch.stack([values[name + suffix] for name in names])
            for shape, names in self._groups.items()
        }

    def unstack(self, stacks: Mapping[str, Tensor]) -> Tensors:
        """Return copies of the single tensors, in the order of `like`."""
        single = {
            name: x.clone()
            for shape, names in self._groups.items()
            for name, x in zip(names, stacks[shape].unbind(), strict=True)
        }
        return {name: single[name] for name in self._order}


class WeightedMean:
    """A running sum_k w_k x_k / sum_k w_k in fp64, so that one update at a time is in memory.

    The result is fp32 and depends on the order of the additions in the last bit: feed it in a
    fixed order. Exact for fp32 values and integer weights up to one final rounding per addition.
    """

    def __init__(self) -> None:
        self._sums: Tensors = {}
        self.total_weight = 0.0

    def add(self, values: Mapping[str, Tensor], weight: float) -> None:
        """Add one term; names and shapes must be those of the first (else ValueError)."""

        def add_in_place(total: Tensor, x: Tensor) -> Tensor:
            if total.shape != x.shape:  # a smaller one would be broadcast without a word
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
    """The mean cosine of all pairs of x_1 .. x_K, with one of them in memory at a time:
    (|sum_k x_k / |x_k||^2 - K) / (K (K - 1))."""

    def __init__(self) -> None:
        self._units = WeightedMean()

    def add(self, values: Mapping[str, Tensor], size: float) -> None:
        """Add one, whose norm is `size`; one without a direction counts for nothing."""
        if size:
            self._units.add(scale(values, 1 / size), 1)

    def result(self) -> float | None:
        """Return the mean; None where there is no pair."""
        count = self._units.total_weight
        if count < 2:
            return None
        return (count * norm(self._units.result()) ** 2 - 1) / (count - 1)
