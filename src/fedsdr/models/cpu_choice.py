"""Choose the base's dtype and the number of threads on a CPU by timing matrix products.

A CPU that has bf16 instructions is not always faster with them: AVX-512 BF16 without AMX computes
these products more slowly than fp32. And products of a small model do not gain from many threads.
"""

import functools
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fedsdr.files import kept_json

EMBEDDED_SIZES = 576, 1536  # of the embedded model: hidden size, intermediate size
TOKENS = 256  # rows of the timed product: an optimizer step of a few short rows
LARGEST = 2048  # of its other sizes, so that a large model is timed in about a second too
REPEATS = 4  # the fastest counts; the first of all warms up
FREE = 0.8  # of a core per thread: no other process needs it
WITHIN = 1.1  # of the fastest time: the fewest threads that reach it are taken

CpuDtype = Literal["fp32", "bf16"]
_TORCH: dict[CpuDtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_Seconds = dict[CpuDtype, list[float]]


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of x W^T and g W for a weight of `inner` x `outer`: `seconds[dtype][i]` with
    `threads[i]` threads, the fewest first."""

    inner: int
    outer: int
    threads: Sequence[int]
    seconds: _Seconds

    @property
    def faster(self) -> CpuDtype:
        return min(self.seconds, key=lambda name: min(self.seconds[name]))

    def threads_for(self, dtype: str) -> int:
        """Return the fewest threads whose time is within 10 % of the fastest.

        A dtype that was not timed gets those of fp32.
        """
        times = self.seconds["bf16" if dtype == "bf16" and "bf16" in self.seconds else "fp32"]
        fast = WITHIN * min(times)
        return next(n for n, now in zip(self.threads, times, strict=True) if now <= fast)

    def dtype_notes(self) -> tuple[str, ...]:
        """Return what the log says of the dtype; empty where there is only fp32."""
        if len(self.seconds) == 1:
            return ()
        fast, slow = sorted(self.seconds, key=lambda name: min(self.seconds[name]))
        ratio = min(self.seconds[slow]) / min(self.seconds[fast])
        products = f"whose {self.inner} x {self.outer} matrix products are {ratio:.1f} times"
        return (f"model.dtype: {fast}, {products} as fast here as those of {slow}",)


def sizes_of(shape: object) -> tuple[int, int]:
    """Return hidden and intermediate size of a model's configuration.

    Not every architecture has both; the embedded model's stand in for one that is missing.
    """
    names = ("hidden_size", "intermediate_size")
    pairs = zip((getattr(shape, name, None) for name in names), EMBEDDED_SIZES, strict=True)
    inner, outer = (n if isinstance(n, int) and n > 0 else m for n, m in pairs)
    return inner, outer


@functools.cache
def cpu_times(inner: int, outer: int, folder: Path) -> CpuTimes | None:
    """Return the times for a model of these sizes; None where nothing is to be chosen.

    They are measured once per machine and kept in `folder`, so that the same configuration gets the
    same dtype and threads next time. While other processes use the cores, the times are those of
    now, and not kept.
    """
    limit, dtypes = thread_limit(), _dtypes()
    threads = _thread_counts(limit)
    if len(threads) == len(dtypes) == 1:
        return None
    inner, outer = min(inner, LARGEST), min(outer, LARGEST)
    cpu = f"{platform.node()} {torch.backends.cpu.get_cpu_capability()} {' '.join(dtypes)}"
    kept_in = folder / "products" / f"{cpu} torch {torch.__version__}"
    path = kept_in / f"{inner} x {outer}, {limit} threads.json"
    measure = functools.partial(_seconds, inner, outer, threads, dtypes)
    is_kept = limit == 1 or path.exists() or cores_are_free(limit)
    found = kept_json(path, measure) if is_kept else measure()
    return CpuTimes(inner, outer, threads, {name: found[name] for name in dtypes})


def cores_are_free(threads: int) -> bool:
    """Return whether this process gets a core for each of its threads."""
    x = torch.ones(1024, 1024, device="cpu")
    with _threads(threads):
        x @ x  # starts them
        wall, used = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < 0.05:
            x @ x
        share = (time.process_time() - used) / (time.perf_counter() - wall)
    return share > FREE * threads


@functools.cache
def thread_limit() -> int:
    """Return PyTorch's number of threads before this process changed it: all cores, or
    OMP_NUM_THREADS."""
    return torch.get_num_threads()


def use_threads(count: int) -> None:
    """Have PyTorch compute with `count` threads from here on."""
    thread_limit()  # is known from here on
    torch.set_num_threads(count)


def _thread_counts(limit: int) -> list[int]:
    """Return the powers of two below `limit`, and `limit`."""
    return [2**i for i in range(limit.bit_length()) if 2**i < limit] + [limit]


def _dtypes() -> list[CpuDtype]:
    return ["fp32", "bf16"] if torch.cpu._is_avx512_bf16_supported() else ["fp32"]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(
    inner: int, outer: int, threads: Sequence[int], dtypes: Sequence[CpuDtype]
) -> _Seconds:
    products = {name: _products(inner, outer, _TORCH[name]) for name in dtypes}
    best = {name: [float("inf")] * len(threads) for name in dtypes}
    for repeat in range(REPEATS + 1):
        for i, count in enumerate(threads):
            with _threads(count):
                for name, run in products.items():  # in turn, so that another load hits all
                    began = time.perf_counter()
                    run()
                    if repeat:
                        best[name][i] = min(best[name][i], time.perf_counter() - began)
    return best


def _products(inner: int, outer: int, dtype: torch.dtype) -> Callable[[], object]:
    """Return a forward and a backward product of a linear layer with a frozen weight."""
    x, grad, weight = (
        torch.ones(shape, dtype=dtype, device="cpu")  # also where shapes are built on "meta"
        for shape in ((TOKENS, inner), (TOKENS, outer), (outer, inner))
    )
    return lambda: (x @ weight.t(), grad @ weight)
