"""The attention function that transformers calls: packed rows in training, a shared cache in
generation.

transformers looks attention functions up by name (`AttentionInterface`) and passes them the
keyword arguments of the model's `forward`. `register` adds ours; `packed_rows` or `cache_spans`
then says how the tokens of a pass are divided into rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedsdr.models.packed_attention import PackedRows, attend, packed_attention

ATTENTION = "fedsdr_rows"


@dataclass(frozen=True)
class CacheSpan:
    """New tokens of neighbouring cache slots, equally many per slot, that share one matmul."""

    tokens: slice  # of the query
    slots: slice  # of the cache
    keys: int  # cache positions to read
    positions: Tensor  # (slots, tokens per slot): position of each token in its row
    _hidden: dict[int | None, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def hidden(self, window: int | None) -> Tensor:
        """Return the mask of `attend`, built once per forward pass and window."""
        if window not in self._hidden:
            own = self.positions[..., None]
            at = torch.arange(self.keys, device=own.device)
            hidden = at > own
            if window is not None:
                hidden |= at <= own - window
            self._hidden[window] = hidden[:, None, None]
        return self._hidden[window]


def register() -> None:
    """Register ATTENTION with transformers, whose table is global to the process."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, row_attention)


def packing_obstacle(model: nn.Module) -> str:
    """Return why rows cannot be packed, or '' if the architecture may allow it.

    Every layer must mix tokens through transformers' attention interface alone: recurrent,
    convolutional and chunked layers would mix the rows of a pack.
    """
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention is not transformers' interface"
    kinds = set(getattr(model.config, "layer_types", None) or [])
    other = sorted(kinds - {"full_attention", "sliding_attention"})
    if other or getattr(model, "_is_stateful", False):
        return f"it has layers of other kinds ({', '.join(other) or 'recurrent'})"
    return ""


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
    packed_rows: PackedRows | None = None,
    cache_spans: Sequence[CacheSpan] | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Return causal attention within each row, (1, tokens, heads, head size).

    query is (1, heads, tokens, size). With `packed_rows`, key and value have the same tokens; with
    `cache_spans` they are a cache (slots, heads, positions, size) that holds the new tokens too.
    Key and value heads may be fewer than query heads. ValueError for attention sinks, for a mask,
    and without either argument: `fast_path` then falls back to the model's own attention.
    """
    if kwargs.get("s_aux") is not None:
        raise ValueError("attention sinks are not supported")
    if attention_mask is not None:
        raise ValueError("the model passes a mask of its own")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if packed_rows is not None:
        out = packed_attention(query, key, value, packed_rows, scale, sliding_window, softcap)
        return out, None
    if cache_spans is None:
        raise ValueError("the model does not pass packed_rows or cache_spans on")
    parts = []
    for span in cache_spans:
        q = query[0, :, span.tokens].unflatten(1, span.positions.shape).transpose(0, 1)
        k, v = key[span.slots, :, : span.keys], value[span.slots, :, : span.keys]
        part = attend(q, k, v, scale, softcap, span.hidden(sliding_window))
        parts.append(part.transpose(0, 1).flatten(1, 2))
    return torch.cat(parts, dim=1)[None].transpose(1, 2).contiguous(), None
