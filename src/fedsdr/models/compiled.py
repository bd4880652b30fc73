"""Passes over memory that torch.compile makes one, where that pays: on CUDA."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def compiles(x: Tensor) -> bool:
    """Whether functions of this tensor are compiled: on CUDA, where Triton is there to do it."""
    return x.is_cuda and importlib.util.find_spec("triton") is not None


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
