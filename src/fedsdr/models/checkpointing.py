"""Activation checkpointing: a decoder layer saves only its input and is recomputed in backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedsdr.errors import UserError


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that transformers can checkpoint, in model order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def checkpoint_layers(model: nn.Module) -> None:
    """Checkpoint every decoder layer of `model`: less activation memory for one more forward.

    The random state is restored, so dropout masks and gradients are bit-identical. Without
    gradients nothing changes. transformers' own switch would require training mode, which turns on
    the base model's dropout. UserError if the model has no such layers.
    """
    layers = decoder_layers(model)
    if not layers:
        raise UserError(
            "train.checkpointing: this model's layers cannot be checkpointed; set it to false"
        )
    for layer in layers:
        layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
