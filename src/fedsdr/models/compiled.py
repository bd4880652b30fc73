"""Passes over memory that torch.compile makes one, where that pays: on CUDA."""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def compiles(x: Tensor) -> bool:
    """Whether functions of this tensor are compiled: on CUDA, where the means are there."""
    return x.is_cuda and _can_compile()


@functools.cache
def _can_compile() -> bool:
    """Triton needs a C compiler, which slim containers lack."""
    compilers = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


def compiled_on_cuda(function: Callable[P, T]) -> Callable[P, T]:
    """Return `function`, compiled at its first call with a first argument that `compiles`.

    Sizes stay open, so that packs of other lengths do not compile it again.
    """

    @functools.cache
    def compiled() -> Any:
        return torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        first = args[0]
        assert isinstance(first, Tensor)
        return compiled()(*args, **kwargs) if compiles(first) else function(*args, **kwargs)

    return call
