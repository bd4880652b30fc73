"""Fused operations of the training step: low-rank branches, RMSNorm, and the cross-entropy loss.

Each is an autograd function whose hand-written backward makes fewer passes over memory than
autograd's own. Frozen weights get no gradient. On CUDA the element-wise parts are compiled.
"""

import functools
import importlib.util
import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

P = ParamSpec("P")
T = TypeVar("T")

# Bytes of fp32 logits held at once: enough for an efficient matmul, and little memory.
CHUNK_BYTES = 24 * 2**20


def compiles(x: Tensor) -> bool:
    """Return whether functions of this tensor are compiled: on CUDA, with Triton and a compiler."""
    return x.is_cuda and _can_compile()


@functools.cache
def _can_compile() -> bool:
    compilers = (os.environ.get("CC", ""), "cc", "gcc", "clang")  # slim containers have none
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


def compiled_on_cuda(function: Callable[P, T]) -> Callable[P, T]:
    """Return `function`, compiled on first use if its first argument `compiles`.

    Shapes are dynamic, so that packs of other lengths do not trigger a recompilation.
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


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of a pass, and how they run through one client's branches.

    `scales` has one number per branch. If `trained`, the last branch is the trained one: `dropout`
    applies to the input of its A, and only its factors get gradients.
    """

    tokens: slice
    scales: Sequence[float]
    trained: bool = False
    dropout: float = 0.0
    generator: torch.Generator | None = None  # of the dropout mask; None: PyTorch's own


class LowRank(torch.autograd.Function):
    """out += sum over branches of scale * B A x for the tokens of each part, in place.

    Two matmuls per part. Saved for backward: x, the dropout mask (one byte per element) and the
    trained branch's A x. `factors` are, part by part, the As, then the Bs, in fp32; the matmuls run
    in x's dtype.
    """

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, x: Tensor, parts: Sequence[Part], *factors: Tensor
    ) -> Tensor:
        flat, flat_out = x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1])
        saved: list[Tensor | None] = []
        first = 0
        for part in parts:
            own = factors[first : first + 2 * len(part.scales)]
            first += len(own)
            saved += _add_low_rank(flat_out[part.tokens], flat[part.tokens], part, own)
        ctx.save_for_backward(*saved)
        ctx.parts, ctx.shape = parts, x.shape
        ctx.covers = sum(part.tokens.stop - part.tokens.start for part in parts) == len(flat)
        ctx.mark_dirty(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat = grad.reshape(-1, grad.shape[-1])
        dx = None
        if ctx.needs_input_grad[1]:
            new = grad.new_empty if ctx.covers else grad.new_zeros
            dx = new(len(flat), ctx.shape[-1])
        grads: list[Tensor | None] = []
        saved = ctx.saved_tensors  # five of each part; checkpointing lets them be read once
        for i, part in enumerate(ctx.parts):
            own_dx = None if dx is None else dx[part.tokens]
            own = saved[5 * i : 5 * i + 5]
            grads += _low_rank_gradients(flat[part.tokens], own_dx, part, *own)
        return grad, None if dx is None else dx.view(ctx.shape), None, *grads


def _add_low_rank(
    out: Tensor, x: Tensor, part: Part, factors: Sequence[Tensor]
) -> list[Tensor | None]:
    """Add one part's low-rank terms to `out`; return what its backward needs."""
    count, rank, dropout = len(part.scales), factors[0].shape[0], part.dropout
    scaled = [a * scale for a, scale in zip(factors[:count], part.scales, strict=True)]
    stacked_a = torch.cat(scaled).to(x.dtype)
    stacked_b = torch.cat(tuple(factors[count:]), dim=1).to(x.dtype)
    dropped = None
    if dropout > 0:
        dropped = torch.empty(x.shape, dtype=torch.bool, device=x.device)
        dropped.bernoulli_(dropout, generator=part.generator)
        stacked_a[-rank:] /= 1 - dropout
        frozen_low = x @ stacked_a[:-rank].t()
        trained_low = x.masked_fill(dropped, 0) @ stacked_a[-rank:].t()
        low = torch.cat((frozen_low, trained_low), dim=1)
    else:
        low = x @ stacked_a.t()
    out.addmm_(low, stacked_b.t())
    if not part.trained:
        return [None, None, stacked_a, stacked_b, None]
    return [x, low[:, -rank:], stacked_a, stacked_b, dropped]


def _low_rank_gradients(
    grad: Tensor,
    dx: Tensor | None,
    part: Part,
    x: Tensor | None,
    low: Tensor | None,
    stacked_a: Tensor,
    stacked_b: Tensor,
    dropped: Tensor | None,
) -> list[Tensor | None]:
    """Write the gradient of one part's x into `dx`; return the gradients of its factors."""
    back = grad @ stacked_b  # (tokens, all ranks)
    count = len(part.scales)
    rank = stacked_a.shape[0] // count
    grads: list[Tensor | None] = [None] * (2 * count)
    if x is not None and low is not None:
        seen = x if dropped is None else x.masked_fill(dropped, 0)
        scale = part.scales[-1] / (1 - part.dropout)
        grads[count - 1] = (back[:, -rank:].t() @ seen).float() * scale
        grads[-1] = (grad.t() @ low).float()
    if dx is not None and dropped is None:
        torch.mm(back, stacked_a, out=dx)
    elif dx is not None and dropped is not None:
        torch.mm(back[:, -rank:], stacked_a[-rank:], out=dx).masked_fill_(dropped, 0)
        dx.addmm_(back[:, :-rank], stacked_a[:-rank])
    return grads


class FrozenRMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps), computed in fp32; the weight gets no gradient.

    Makes about half of the passes over memory of autograd's backward for the same formula.
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
    """Return y and 1 / sqrt(mean(x^2) + eps)."""
    wide = x.float()
    mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1]
    inverse = mean_square.add_(eps).rsqrt_()
    return (wide * inverse).to(x.dtype).mul_(weight), inverse


@compiled_on_cuda
def _gradient(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """Return dx = i (g w) - x i^3 mean(x g w), where i = 1 / sqrt(mean(x^2) + eps)."""
    wide = x.float()
    dx = grad.float() * weight.float()
    shared = (dx * wide).mean(-1, keepdim=True) * inverse.pow(3)
    return dx.mul_(inverse).addcmul_(wide, shared, value=-1).to(x.dtype)


def fuse_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Replace each RMSNorm of the model by FrozenRMSNorm; return the replaced modules by name.

    RMSNorm has many class names, and some differ in the formula (Gemma's 1 + weight) or take more
    arguments (gated norms), so a module is replaced only if it has the same parameters and its
    output on a test input equals the formula's.
    """
    replaced = {}
    for name, module in list(model.named_modules()):
        fused = _fused_norm(module)
        if fused is not None:
            replaced[name] = module
            model.set_submodule(name, fused)
    return replaced


def _fused_norm(module: nn.Module) -> FrozenRMSNorm | None:
    """Return the FrozenRMSNorm that computes the same as `module`, or None."""
    eps, weights = getattr(module, "variance_epsilon", None), dict(module.named_parameters())
    if not isinstance(eps, float) or list(weights) != ["weight"] or weights["weight"].dim() != 1:
        return None
    if len(inspect.signature(module.forward).parameters) != 1:
        return None
    weight = weights["weight"]
    fused = FrozenRMSNorm(weight, eps)
    if weight.is_meta:  # no values to compare
        return fused
    probe = torch.linspace(-2, 3, weight.numel(), device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        same = torch.allclose(module(probe[None]), fused(probe[None]), rtol=1e-5, atol=1e-6)
    return fused if same else None


def label_losses(hidden: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
    """Return -log softmax(head(hidden))[label] of each row in nats, (rows,), fp32.

    hidden is (rows, size), labels (rows,). The head is frozen. The gradient of `hidden` is
    computed with the loss, one chunk of logits at a time (Liger Kernel, Hsu et al. 2024).
    """
    return _LabelLosses.apply(hidden, head.weight, head.bias, labels)


@compiled_on_cuda
def _at_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log softmax at the label and d loss / d logits = softmax - one at the label."""
    log_probs = torch.log_softmax(logits, -1, dtype=torch.float32)
    own = torch.arange(len(labels), device=labels.device), labels
    losses = -log_probs[own]
    dlogits = log_probs.exp_()
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
                log_probs = torch.log_softmax(logits, -1, dtype=torch.float32)
                losses[at] = torch.nn.functional.nll_loss(log_probs, labels[at], reduction="none")
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
