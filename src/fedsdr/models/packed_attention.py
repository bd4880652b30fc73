"""Causal attention over packed rows: a hand-written kernel, or FlashAttention on CUDA."""

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class RowBlock(NamedTuple):
    """Rows whose first `prefix` tokens are the same and stored once; then each row's own tokens
    follow, `lengths` of them, without padding."""

    lengths: tuple[int, ...]
    prefix: int = 0


@dataclass(frozen=True)
class PackedRows:
    """How the tokens of one forward pass are divided into rows.

    Rows of one client are a block. Masks and indices are built on first use and live as long as the
    pass: at most longest^2 bytes per attention window.
    """

    blocks: tuple[RowBlock, ...]
    _built: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)

    def segments(self) -> Iterator[tuple[int, int, slice]]:
        """Yield (start, length, prefix tokens attended to) of each block's prefix and rows."""
        start = 0
        for lengths, prefix in self.blocks:
            shared = slice(start, start + prefix)
            if prefix:
                yield start, prefix, slice(start, start)
            start += prefix
            for n in lengths:
                yield start, n, shared
                start += n

    def hidden(self, n: int, prefix: int, window: int | None, device: torch.device) -> Tensor:
        """Return a (n, prefix + n) mask, True where a query must not attend.

        All masks of a window are slices of one, that of the longest row.
        """
        if (window, device) not in self._built:
            size = max(prefix + max(lengths) for lengths, prefix in self.blocks)
            self._built[window, device] = causal_mask(size, window, device)
        mask: Tensor = self._built[window, device]
        return mask[prefix : prefix + n, : prefix + n]

    def flash_indices(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return the index of each segment's keys, and the ends of its queries and of its keys."""
        if device not in self._built:
            keys: list[int] = []
            query_ends, key_ends = [0], [0]
            for start, n, prefix in self.segments():
                keys += [*range(prefix.start, prefix.stop), *range(start, start + n)]
                query_ends.append(start + n)
                key_ends.append(len(keys))
            ends = (torch.tensor(e, dtype=torch.int32, device=device)
                    for e in (query_ends, key_ends))  # fmt: skip
            self._built[device] = torch.tensor(keys, device=device), *ends
        built: tuple[Tensor, Tensor, Tensor] = self._built[device]
        return built


def causal_mask(size: int, window: int | None, device: torch.device) -> Tensor:
    """Return a (size, size) mask, True where key j > query i or j <= i - window."""
    hidden = torch.ones(size, size, dtype=torch.bool, device=device).triu_(1)
    if window is not None and window < size:
        hidden |= torch.ones_like(hidden).tril_(-window)
    return hidden


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: PackedRows,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Return causal attention within each row, (1, tokens, heads, head size).

    query is (1, heads, tokens, size); key and value may have fewer heads (grouped-query attention).
    """
    if softcap is None and has_flash(query):
        return _flash_attention(query, key, value, rows, scale, window)
    if softcap is None:
        out: Tensor = _PackedAttention.apply(query, key, value, rows, scale, window)
        return out
    parts = []
    for start, n, prefix in rows.segments():
        k, v = (_with_prefix(t, start, n, prefix) for t in (key, value))
        hidden = rows.hidden(n, size_of(prefix), window, query.device)
        parts.append(attend(query[:, :, start : start + n], k, v, scale, softcap, hidden))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def size_of(tokens: slice) -> int:
    """Return the number of tokens of a slice."""
    size: int = tokens.stop - tokens.start
    return size


def _with_prefix(t: Tensor, start: int, n: int, prefix: slice) -> Tensor:
    """Return the keys or values that a row attends to: those of the prefix and its own."""
    own = t[..., start : start + n, :]
    return torch.cat((t[..., prefix, :], own), dim=-2) if size_of(prefix) else own


class _PackedAttention(torch.autograd.Function):
    """softmax(scale q k^T) v per row with batched matmuls and an fp32 softmax.

    On CPUs this is faster than scaled_dot_product_attention, whose backward is slow for short rows.
    Saved for backward: q, k, v and the attention weights of each row, in v's dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: PackedRows,
        scale: float,
        window: int | None,
    ) -> Tensor:
        _, heads, tokens, size = query.shape
        groups = key.shape[1]
        out = value.new_empty(1, tokens, heads, value.shape[3])
        saved = []
        for start, n, prefix in rows.segments():
            k, v = _with_prefix(key[0], start, n, prefix), _with_prefix(value[0], start, n, prefix)
            q = query[0, :, start : start + n].reshape(groups, -1, size)
            empty = q.new_empty(())
            scores = torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=scale).float()
            hidden = rows.hidden(n, size_of(prefix), window, query.device)
            scores.view(groups, -1, *hidden.shape).masked_fill_(hidden, float("-inf"))
            weights = torch.softmax(scores, -1).to(v.dtype)
            out[0, start : start + n] = (weights @ v).view(heads, n, -1).transpose(0, 1)
            saved.append(weights)
        ctx.save_for_backward(query, key, value, *saved)
        ctx.rows, ctx.scale = rows, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *saved = ctx.saved_tensors
        groups = key.shape[1]
        # Allocated as (tokens, heads, size), the layout of the projections, to avoid a copy.
        dq, dk, dv = (t.new_empty(t.transpose(1, 2).shape) for t in (query, key, value))
        for (start, n, prefix), weights in zip(ctx.rows.segments(), saved, strict=True):
            k, v = _with_prefix(key[0], start, n, prefix), _with_prefix(value[0], start, n, prefix)
            span = slice(start, start + n)
            q = query[0, :, span].reshape(groups, -1, query.shape[3])
            g = grad[0, span].transpose(0, 1).reshape(groups, -1, value.shape[3])
            dvalue = weights.transpose(1, 2) @ g
            dscores = torch.ops.aten._softmax_backward_data(
                (g @ v.transpose(1, 2)).float(), weights.float(), -1, torch.float32
            ).to(q.dtype)
            dquery = torch.baddbmm(q.new_empty(()), dscores, k, beta=0, alpha=ctx.scale)
            dkey = torch.baddbmm(
                q.new_empty(()), dscores.transpose(1, 2), q, beta=0, alpha=ctx.scale
            )
            dq[0, span] = dquery.view(query.shape[1], n, -1).transpose(0, 1)
            for total, part in ((dk, dkey), (dv, dvalue)):
                part = part.transpose(0, 1)
                shared = size_of(prefix)
                total[0, span] = part[shared:]
                if shared:
                    total[0, prefix] += part[:shared]
        return *(t.transpose(1, 2) for t in (dq, dk, dv)), None, None, None


def has_flash(query: Tensor) -> bool:
    """Return whether PyTorch's variable-length FlashAttention supports this query."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    capable = torch.cuda.get_device_capability(query.device)[0] >= 8 and query.shape[-1] <= 256
    return capable and _varlen_attention() is not None


@functools.cache
def _varlen_attention() -> Any:
    """Return PyTorch's `varlen_attn`, or None if this version lacks its scale or window.

    Its kernel reads fewer key heads than query heads. PyTorch 2.11 passes them on as they are,
    later versions ask for `enable_gqa`.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    if not {"scale", "window_size"} <= parameters.keys():
        return None
    if "enable_gqa" in parameters:
        return varlen_attn
    return lambda *tensors, enable_gqa, **options: varlen_attn(*tensors, **options)


def _flash_attention(
    query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, scale: float, window: int | None
) -> Tensor:
    indices, query_ends, key_ends = rows.flash_indices(query.device)
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    if len(indices) > len(k):  # prefixes are read by several rows
        k, v = k[indices], v[indices]
    longest = max(n for _, n, _ in rows.segments())
    most_keys = max(size_of(prefix) + n for _, n, prefix in rows.segments())
    window_size = (-1 if window is None else window - 1, 0)
    gqa = q.shape[1] != k.shape[1]
    out: Tensor = _varlen_attention()(
        q, k, v, query_ends, key_ends, longest, most_keys,
        scale=scale, window_size=window_size, enable_gqa=gqa,
    )  # fmt: skip
    return out[None]


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None, hidden: Tensor
) -> Tensor:
    """Return softmax attention with an fp32 softmax, (batch, heads, n, size).

    q is (batch, heads, n, size); k and v may have fewer heads. `hidden` is a mask that broadcasts
    to (batch, key heads, queries per key head, n, keys), True where a query must not attend.
    """
    batch, heads, n, size = q.shape
    groups = k.shape[1]
    q = q.reshape(batch, groups, heads // groups, n, size)
    flat = (q * scale).reshape(batch, groups, -1, size)
    scores = (flat @ k.transpose(-1, -2)).view(batch, groups, heads // groups, n, -1).float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype)
    out = weights.view(batch, groups, -1, weights.shape[-1]) @ v
    return out.view(batch, heads, n, v.shape[-1])
