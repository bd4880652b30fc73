"""Activation checkpointing: a layer keeps its input alone, and runs again in the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedsdr.errors import UserError


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the model's layers of the kind that transformers can checkpoint, in their order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def checkpoint_layers(model: nn.Module) -> None:
    """Make every decoder layer of `model` keep nothing but its input for the backward pass.

    One more forward of each layer for L x (one layer's) activations less. Dropout draws the same
    masks again, so the gradients are the same bits. Without gradients nothing changes.

    transformers' own switch wants the model in training mode, which would also turn on the
    dropout of the base. UserError when the model has no such layers.
    """
    layers = decoder_layers(model)
    if not layers:
        raise UserError(
            "train.checkpointing: the layers of this model cannot be checkpointed; set it to false"
        )
    for layer in layers:
        layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
