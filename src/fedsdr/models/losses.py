"""The loss at the labels, without ever holding a (labels x vocabulary) block."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 24 * 2**20  # of logits at once: a good matrix product, and little memory


def label_losses(hidden: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
    """Return -log softmax(head(hidden))[label] of each row in nats, (rows,), fp32.

    hidden is (rows, size), labels (rows,). The head is frozen: the gradient goes to `hidden`
    alone and is taken chunk by chunk with the loss, while the logits are there (as Liger Kernel
    does, Hsu et al. 2024).
    """
    return _LabelLosses.apply(hidden, head.weight, head.bias, labels)


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
            log_shares = torch.log_softmax(logits, -1, dtype=torch.float32)
            own = torch.arange(len(log_shares), device=labels.device), labels[at]
            losses[at] = -log_shares[own]
            if dhidden is not None:
                # d loss / d logits = softmax - one at the label
                shares = log_shares.exp_()
                shares[own] -= 1
                torch.mm(shares.to(weight.dtype), weight, out=dhidden[at])
        ctx.save_for_backward(dhidden)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (dhidden,) = ctx.saved_tensors
        return dhidden * grad[:, None].to(dhidden.dtype), None, None, None
