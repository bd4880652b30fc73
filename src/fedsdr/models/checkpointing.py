"""Activation checkpointing: a decoder layer saves only its input and is recomputed in backward."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedsdr.errors import UserError


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that transformers can checkpoint, in model order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def checkpoint_layers(
    model: nn.Module, generators: Callable[[], list[torch.Generator]] = list
) -> None:
    """Checkpoint every decoder layer of `model`: less activation memory for one more forward.

    PyTorch's random state and that of the `generators` of a pass are restored, so dropout masks and
    gradients are bit-identical. Without gradients nothing changes. transformers' own switch would
    require training mode, which turns on the base model's dropout. UserError if the model has no
    such layers.
    """
    layers = decoder_layers(model)
    if not layers:
        raise UserError(
            "train.checkpointing: this model's layers cannot be checkpointed; set it to false"
        )
    for layer in layers:
        layer.forward = _recomputed(layer.forward, generators)


def _recomputed(
    forward: Callable[..., Any], generators: Callable[[], list[torch.Generator]]
) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _rewound([(g, g.get_state()) for g in generators()])

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


@contextmanager
def _rewound(states: Sequence[tuple[torch.Generator, torch.Tensor]]) -> Iterator[None]:
    """Within the context, the generators are in these states."""
    now = [generator.get_state() for generator, _ in states]
    for generator, state in states:
        generator.set_state(state)
    try:
        yield
    finally:
        for (generator, _), state in zip(states, now, strict=True):
            generator.set_state(state)
