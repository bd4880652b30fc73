"""RMS normalisation with a frozen weight in few passes over memory."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedsdr.models.compiled import compiled_on_cuda


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
