"""What low-rank branches add to a layer's output, in one pass for all of them."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
