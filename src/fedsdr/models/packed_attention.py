"""Attention inside packed rows, in fewer passes than autograd takes, or by FlashAttention."""

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_lengths: tuple[int, ...],
    prefix: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention inside each row; returns (1, tokens, heads, head size).

    query is (1, heads, tokens, size), key and value may have fewer heads: `prefix` tokens with
    which every row begins, once, and then what follows in each row, one after the other.
    """
    lengths = (prefix, *row_lengths) if prefix else row_lengths
    if softcap is None and has_flash(query):
        return _flash_rows(query, key, value, lengths, prefix, scale, window)
    if softcap is None:
        out: Tensor = _RowAttention.apply(query, key, value, lengths, prefix, scale, window)
        return out
    rows = []
    for start, n, old in _stretches(lengths, prefix):
        k, v = (_row_keys(t, start, n, old) for t in (key, value))
        hidden = _causal(n, old, window, query.device)
        rows.append(attend(query[:, :, start : start + n], k, v, scale, softcap, hidden))
    return torch.cat(rows, dim=2).transpose(1, 2)


def _stretches(lengths: tuple[int, ...], prefix: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, length, prefix tokens that it sees) of each stretch; the prefix sees itself."""
    start = 0
    for n in lengths:
        yield start, n, prefix if start else 0
        start += n


def _row_keys(t: Tensor, start: int, n: int, old: int) -> Tensor:
    """Return the keys or values that a row sees: of the first `old` tokens and its own `n`."""
    own = t[..., start : start + n, :]
    return torch.cat((t[..., :old, :], own), dim=-2) if old else own


@functools.lru_cache(maxsize=256)  # the layers of a model ask for the same ones in turn
def _causal(length: int, old: int, window: int | None, device: torch.device) -> Tensor:
    """Return the (length, old + length) mask that is True where a query may not look."""
    with torch.inference_mode(False):  # one made in inference could not be used in training
        hidden = torch.ones(length, old + length, dtype=torch.bool, device=device).triu(old + 1)
        if window is not None and window < old + length:
            hidden |= torch.ones_like(hidden).tril(old - window)
    return hidden


class _RowAttention(torch.autograd.Function):
    """softmax(scale q k^T) v of each row by plain batched products, with an fp32 softmax.

    On a CPU this beats scaled_dot_product_attention, whose backward is slow for short rows. Kept
    for backward: q, k, v and the weights of each row, in the dtype of v.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lengths: tuple[int, ...],
        prefix: int,
        scale: float,
        window: int | None,
    ) -> Tensor:
        _, heads, tokens, size = query.shape
        groups = key.shape[1]
        out = value.new_empty(1, tokens, heads, value.shape[3])
        kept = []
        for start, n, old in _stretches(lengths, prefix):
            k, v = _row_keys(key[0], start, n, old), _row_keys(value[0], start, n, old)
            q = query[0, :, start : start + n].reshape(groups, -1, size)
            empty = q.new_empty(())
            scores = torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=scale).float()
            scores.view(groups, -1, n, old + n).masked_fill_(
                _causal(n, old, window, query.device), float("-inf")
            )
            weights = torch.softmax(scores, -1).to(v.dtype)
            out[0, start : start + n] = (weights @ v).view(heads, n, -1).transpose(0, 1)
            kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.lengths, ctx.prefix, ctx.scale = lengths, prefix, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        groups = key.shape[1]
        # Laid out as the layers below want them, (tokens, heads, size), so that no copy follows.
        dq, dk, dv = (t.new_empty(t.transpose(1, 2).shape) for t in (query, key, value))
        stretches = _stretches(ctx.lengths, ctx.prefix)
        for (start, n, old), weights in zip(stretches, kept, strict=True):
            k, v = _row_keys(key[0], start, n, old), _row_keys(value[0], start, n, old)
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
                total[0, span] = part[old:]
                if old:
                    total[0, :old] += part[:old]
        return *(t.transpose(1, 2) for t in (dq, dk, dv)), None, None, None, None


def has_flash(query: Tensor) -> bool:
    """Whether PyTorch's own FlashAttention for rows of different lengths takes this query."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    capable = torch.cuda.get_device_capability(query.device)[0] >= 8 and query.shape[-1] <= 256
    return capable and _varlen_attention() is not None


@functools.cache
def _varlen_attention() -> Any:
    """Return PyTorch's FlashAttention for rows, None where it is too old for grouped heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "enable_gqa" in inspect.signature(varlen_attn).parameters else None


def _flash_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    prefix: int,
    scale: float,
    window: int | None,
) -> Tensor:
    at, q_ends, k_ends = _key_places(lengths, prefix, query.device)
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    if prefix:  # each row's keys are those of the prefix and its own
        k, v = k[at], v[at]
    out: Tensor = _varlen_attention()(
        q,
        k,
        v,
        q_ends,
        k_ends,
        max(lengths),
        max(lengths) + prefix,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[None]


@functools.lru_cache(maxsize=8)
def _key_places(
    lengths: tuple[int, ...], prefix: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the keys of each row stand, and where its queries and its keys end."""
    at: list[int] = []
    q_ends, k_ends = [0], [0]
    for start, n, old in _stretches(lengths, prefix):
        at += [*range(old), *range(start, start + n)]
        q_ends.append(start + n)
        k_ends.append(len(at))
    with torch.inference_mode(False):  # as above
        q_at, k_at = (torch.tensor(x, dtype=torch.int32, device=device) for x in (q_ends, k_ends))
        return torch.tensor(at, device=device), q_at, k_at


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None, hidden: Tensor
) -> Tensor:
    """Softmax attention with an fp32 softmax; q is (batch, heads, n, size), k and v may have
    fewer heads. `hidden` broadcasts to (batch, kv heads, group, n, keys)."""
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
