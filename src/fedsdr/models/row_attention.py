"""Attention that stays inside a row, so that many rows share one forward pass without padding.

Hugging Face models look their attention up by name and hand it the keyword arguments of
`forward`. `register` adds this one under ATTENTION; `row_lengths` or `spans` then say how the
tokens fall into rows. Positions come from `position_ids`, so nothing else has to change.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsdr.models.packed_attention import attend, packed_attention

ATTENTION = "fedsdr_rows"


@dataclass(frozen=True)
class Span:
    """New tokens of neighbouring rows of a cache, equally many a row, that share a product.

    `tokens` are theirs in the query, `slots` theirs in the cache, of which the first `keys`
    positions are read; `positions` (rows, tokens a row) says where in its row each token stands.
    """

    tokens: slice
    slots: slice
    keys: int
    positions: Tensor


def register() -> None:
    """Make ATTENTION known to transformers (which keeps one table a process)."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, row_attention)


def supports_rows(model: nn.Module) -> bool:
    """Whether every layer of the model mixes tokens through the attention table alone.

    Recurrent, convolutional and chunked layers would mix the rows of a pack; such a model gets
    padded batches and its own attention.
    """
    layers = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and not getattr(model, "_is_stateful", False)
        and layers <= {"full_attention", "sliding_attention"}
    )


def uses_rows(model: nn.Module) -> bool:
    """Whether the model's attention is ATTENTION, so that rows may share a forward pass."""
    return getattr(model.config, "_attn_implementation", "") == ATTENTION


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    row_lengths: tuple[int, ...] | None = None,
    prefix: int = 0,
    spans: Sequence[Span] | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention inside each row; returns (1, tokens, heads, head size).

    Query is (1, heads, tokens, size), the rows one after the other. With `row_lengths`, key and
    value lie likewise, and `prefix` tokens with which every row begins stand once before them; with
    `spans` they are a cache (slots, heads, positions, size), in which the new tokens already stand.
    Grouped key and value heads are not repeated.
    Raises ValueError for attention sinks or when neither is given.
    """
    if kwargs.get("s_aux") is not None:
        raise ValueError("attention sinks are not supported in packed rows")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if row_lengths is not None:
        out = packed_attention(
            query, key, value, row_lengths, prefix, scale, sliding_window, softcap
        )
        return out, None
    if spans is not None:
        done = [_attend_span(query, key, value, s, scale, softcap, sliding_window) for s in spans]
        return torch.cat(done, dim=2).transpose(1, 2), None
    raise ValueError("row attention needs row_lengths or spans")


def _attend_span(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span: Span,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Attention of one span; (1, heads, tokens of the span, size)."""
    q = query[0, :, span.tokens].unflatten(1, span.positions.shape).transpose(0, 1)
    k, v = key[span.slots, :, : span.keys], value[span.slots, :, : span.keys]
    at, own = torch.arange(span.keys, device=key.device), span.positions[..., None]
    hidden = at > own
    if window is not None:
        hidden |= at <= own - window
    out = attend(q, k, v, scale, softcap, hidden[:, None, None])
    return out.transpose(0, 1).flatten(1, 2)[None]
