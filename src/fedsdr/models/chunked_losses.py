"""Any loss per label, computed from last hidden states in chunks of logits.

Where `label_losses` is the cross-entropy alone, here the caller gives the formula.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedsdr.models.forward_plan import plan_of
from fedsdr.models.fused_ops import CHUNK_BYTES

LossesOf = Callable[[Tensor, slice], Tensor]  # (hidden states of a chunk, its place) -> losses


def logits_of(model: nn.Module, states: Tensor) -> Tensor:
    """Return the logits of last hidden states, (rows, vocabulary).

    A head that is not plain scales them (Cohere, Granite) or caps them (Gemma) as its configuration
    says. Callers compare the result with `label_logits` once.
    """
    logits: Tensor = model.get_output_embeddings()(states)  # type: ignore[operator]
    if plan_of(model).plain_head:
        return logits
    config: Any = model.config
    logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def chunked_losses(model: nn.Module, states: Tensor, losses_of: LossesOf) -> Tensor:
    """Return `losses_of` for all hidden states, (rows,), fp32, differentiable by `states` alone.

    Each chunk is differentiated at once, so that no more than a chunk of logits is ever held.
    """
    vocabulary = model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    # A loss between two distributions holds about six blocks of logits.
    return _Chunked.apply(states, losses_of, max(1, CHUNK_BYTES // (8 * vocabulary)))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, losses_of: LossesOf, size: int) -> Tensor:
        losses = torch.empty(len(states), device=states.device)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for start in range(0, len(states), size):
            at = slice(start, start + size)
            chunk = states[at].detach().requires_grad_(gradient is not None)
            with torch.set_grad_enabled(gradient is not None):
                found = losses_of(chunk, at)
                if gradient is not None:
                    (gradient[at],) = torch.autograd.grad(found.sum(), chunk)
            losses[at] = found.detach()
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None].to(gradient.dtype), None, None
