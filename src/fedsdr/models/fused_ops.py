"""Fused operations of the training step: low-rank branches, RMS norms, and losses at the labels.

Each is an autograd function with a hand-written backward that takes fewer passes over memory than
autograd's own. What is frozen has no gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedsdr.models.compiled import compiled_on_cuda

CHUNK_BYTES = 24 * 2**20  # of logits at once: a good matrix product, and little memory


class LowRank(torch.autograd.Function):
    """out + sum over branches of scale B A x in one pass, in the place of `out`.

    The last branch is the trained one, if there is one: the input of its A goes through dropout,
    and it alone has gradients. Kept for backward: x, a mask of one byte an element under dropout,
    and the low-rank states of the trained branch. A and B are fp32, the products in x's dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        x: Tensor,
        scales: list[float],
        dropout: float,
        trained: bool,
        *factors: Tensor,
    ) -> Tensor:
        count = len(scales)
        ups = torch.cat([a * s for a, s in zip(factors[:count], scales, strict=True)]).to(x.dtype)
        downs = torch.cat(factors[count:], dim=1).to(x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        rank = factors[0].shape[0]
        dropped = None
        if dropout > 0:
            dropped = torch.empty(flat.shape, dtype=torch.bool, device=x.device)
            dropped.bernoulli_(dropout)
            ups[-rank:] /= 1 - dropout
            low = torch.cat(
                (flat @ ups[:-rank].t(), flat.masked_fill(dropped, 0) @ ups[-rank:].t()), dim=1
            )
        else:
            low = flat @ ups.t()
        if trained:
            ctx.save_for_backward(flat, low[:, -rank:], ups, downs, dropped)
        else:
            ctx.save_for_backward(None, None, ups, downs, None)
        ctx.scale, ctx.count, ctx.shape = scales[-1] / (1 - dropout), count, x.shape
        ctx.mark_dirty(out)
        out.view(-1, out.shape[-1]).addmm_(low, downs.t())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, ups, downs, dropped = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        back = flat @ downs  # (tokens, all ranks)
        rank = ups.shape[0] // ctx.count
        grads: list[Tensor | None] = [None] * (2 * ctx.count)
        if x is not None:
            seen = x if dropped is None else x.masked_fill(dropped, 0)
            grads[ctx.count - 1] = (back[:, -rank:].t() @ seen).float() * ctx.scale
            grads[-1] = (flat.t() @ low).float()
        dx = None
        if ctx.needs_input_grad[1]:
            if dropped is None:
                dx = back @ ups
            else:
                dx = (back[:, -rank:] @ ups[-rank:]).masked_fill_(dropped, 0)
                dx.addmm_(back[:, :-rank], ups[:-rank])
            dx = dx.view(ctx.shape)
        return grad, dx, None, None, None, *grads


class FrozenRMSNorm(nn.Module):
    """y = weight x / sqrt(mean(x^2) + eps), in fp32 inside; the weight has no gradient.

    Autograd's own backward of the same formula takes about twice as many passes.
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = _normalise(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        return _gradient(grad, x, weight, inverse), None, None


@compiled_on_cuda
def _normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return y and the inverse root."""
    wide = x.float()
    mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1]
    inverse = mean_square.add_(eps).rsqrt_()
    return (wide * inverse).to(x.dtype).mul_(weight), inverse


@compiled_on_cuda
def _gradient(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """Return dx = i (g w) - x i^3 mean(x g w), with i the inverse root."""
    wide = x.float()
    dx = grad.float() * weight.float()
    shared = (dx * wide).mean(-1, keepdim=True) * inverse.pow(3)
    return dx.mul_(inverse).addcmul_(wide, shared, value=-1).to(x.dtype)


def fuse_norms(model: nn.Module) -> None:
    """Put FrozenRMSNorm in the place of each norm of the model that computes the same.

    Models spell RMSNorm in many ways, and some differ in the formula (Gemma's 1 + weight), so each
    is asked: it is replaced only if it answers as the formula does, bit for bit to rounding.
    """
    for name, module in list(model.named_modules()):
        eps = getattr(module, "variance_epsilon", None)
        weights = dict(module.named_parameters(recurse=False))
        if not isinstance(eps, float) or list(weights) != ["weight"]:
            continue
        weight = weights["weight"]
        fused = FrozenRMSNorm(weight, eps)
        probe = torch.linspace(-2, 3, weight.numel(), device=weight.device, dtype=weight.dtype)
        with torch.no_grad():  # on the meta device there are no values that could differ
            same = weight.is_meta or torch.allclose(
                module(probe[None]), fused(probe[None]), rtol=1e-5, atol=1e-6
            )
        if same:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], fused)


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
