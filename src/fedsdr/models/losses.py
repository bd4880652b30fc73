"""The loss at the labels, without ever holding a (labels x vocabulary) block."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedsdr.models.compiled import compiled_on_cuda

CHUNK_BYTES = 24 * 2**20  # of logits at once: a good matrix product, and little memory


def label_losses(hidden: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
    """Return -log softmax(head(hidden))[label] of each row in nats, (rows,), fp32.

    hidden is (rows, size), labels (rows,). The head is frozen: the gradient goes to `hidden`
    alone and is taken chunk by chunk with the loss, while the logits are there (as Liger Kernel
    does, Hsu et al. 2024).
    """
    return _LabelLosses.apply(hidden, head.weight, head.bias, labels)


@compiled_on_cuda
def _at_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log softmax at the label and d loss / d logits = softmax - one at the label."""
    log_shares = torch.log_softmax(logits, -1, dtype=torch.float32)
    own = torch.arange(len(labels), device=labels.device), labels
    losses = -log_shares[own]
    dlogits = log_shares.exp_()
    dlogits[own] -= 1
    return losses, dlogits


class _LabelLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> Tensor:
        losses = torch.empty(len(labels), device=hidden.device)
        dhidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        for start in range(0, len(labels), size):
            at = slice(start, start + size)
            logits = torch.nn.functional.linear(hidden[at], weight, bias)
            if dhidden is None:
                log_shares = torch.log_softmax(logits, -1, dtype=torch.float32)
                losses[at] = torch.nn.functional.nll_loss(log_shares, labels[at], reduction="none")
            else:
                losses[at], dlogits = _at_labels(logits, labels[at])
                torch.mm(dlogits.to(weight.dtype), weight, out=dhidden[at])
        ctx.save_for_backward(dhidden)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (dhidden,) = ctx.saved_tensors
        return dhidden * grad[:, None].to(dhidden.dtype), None, None, None
