"""Choose the dtype of the base on a CPU by timing matrix products of the model's shapes.

A CPU that has bf16 instructions is not always faster with them: AVX-512 BF16 without AMX computes
these products more slowly than fp32.
"""

import functools
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fedsdr.files import kept_json

EMBEDDED_SIZES = 576, 1536  # of the embedded model: hidden size, intermediate size
TOKENS = 128  # rows of the timed product
LARGEST = 2048  # of its other sizes, so that a large model is timed in some milliseconds too
REPEATS = 4  # the fastest counts; the first of all warms up

CpuDtype = Literal["fp32", "bf16"]
_TORCH: dict[CpuDtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class DtypeTimes:
    """Seconds of x W^T and g W by dtype, for a weight of `inner` x `outer`."""

    inner: int
    outer: int
    seconds: dict[CpuDtype, float]

    @property
    def faster(self) -> CpuDtype:
        return min(self.seconds, key=self.seconds.__getitem__)

    def __str__(self) -> str:
        other = max(self.seconds, key=self.seconds.__getitem__)
        ratio = self.seconds[other] / self.seconds[self.faster]
        return (
            f"model.dtype: {self.faster}, whose {self.inner} x {self.outer} matrix products are "
            f"{ratio:.1f} times as fast here as those of {other}"
        )


@functools.cache
def cpu_times(inner: int, outer: int, folder: Path) -> DtypeTimes | None:
    """Return the times of the dtypes for a model of these sizes; None if there is only fp32.

    They are measured once per machine and kept in `folder`, so that the same configuration gets the
    same dtype next time.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    inner, outer = min(inner, LARGEST), min(outer, LARGEST)
    machine = f"{platform.node()} torch {torch.__version__}, {torch.get_num_threads()} threads"
    path = folder / "dtypes" / f"{machine}, {inner} x {outer}.json"
    kept = kept_json(path, lambda: _seconds(inner, outer))
    return DtypeTimes(inner, outer, {name: kept[name] for name in _TORCH})


def _seconds(inner: int, outer: int) -> dict[CpuDtype, float]:
    products: dict[CpuDtype, Callable[[], object]] = {
        name: _products(inner, outer, dtype) for name, dtype in _TORCH.items()
    }
    best = dict.fromkeys(products, float("inf"))
    for repeat in range(REPEATS + 1):
        for name, run in products.items():  # in turn, so that another load hits both
            began = time.perf_counter()
            run()
            if repeat:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def _products(inner: int, outer: int, dtype: torch.dtype) -> Callable[[], object]:
    """Return a forward and a backward product of a linear layer with a frozen weight."""
    x, grad, weight = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        for shape in ((TOKENS, inner), (TOKENS, outer), (outer, inner))
    )
    return lambda: (x @ weight.t(), grad @ weight)
