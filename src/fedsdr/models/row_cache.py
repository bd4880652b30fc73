"""Key-value cache of many rows, and forward passes that append tokens to any of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsdr.models.packing import device_of
from fedsdr.models.row_attention import CacheSpan

# Rows that share a matmul read the cache up to the longest of them. If that would read more than
# this many unused positions, start a separate matmul. On GPUs padding is cheaper.
PADDING = 512
START = 4096  # positions that a cache has from the start


@dataclass(frozen=True)
class Piece:
    """New tokens of the row in `slot`; `start` is the position of the first."""

    slot: int
    start: int
    tokens: Sequence[int]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class RowCache:
    """Keys and values of `slots` rows; each layer's tensors are (slots, heads, positions, size).

    Positions beyond `START` are allocated when they are needed, up to `capacity`. Implements the
    two cache methods that transformers layers call. Tokens are written in place.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.allocated = min(capacity, START)  # positions
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.owner = self.position = torch.empty(0, dtype=torch.long)

    def place(self, owner: Tensor, position: Tensor, end: int) -> None:
        """Set the slot and the position of each token of the next forward pass, both (tokens,), and
        the end of the positions."""
        self.owner, self.position = owner, position
        if end > self.allocated:
            more = min(self.capacity, max(end, 2 * self.allocated)) - self.allocated
            self.allocated += more
            for index, (keys, values) in self.layers.items():
                self.layers[index] = F.pad(keys, (0, 0, 0, more)), F.pad(values, (0, 0, 0, more))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.position.max())

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Store keys and values, (1, heads, tokens, size); return the layer's whole cache."""
        if layer_idx not in self.layers:
            shape = (self.slots, key.shape[1], self.allocated)
            self.layers[layer_idx] = (
                key.new_zeros(*shape, key.shape[3]),
                value.new_zeros(*shape, value.shape[3]),
            )
        keys, values = self.layers[layer_idx]
        keys[self.owner, :, self.position] = key[0].transpose(0, 1)
        values[self.owner, :, self.position] = value[0].transpose(0, 1)
        return keys, values

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for tensor in (tensor for pair in self.layers.values() for tensor in pair):
            tensor[target, :, :length] = tensor[source, :, :length]


def forward_pieces(model: nn.Module, cache: RowCache, pieces: Sequence[Piece]) -> Tensor:
    """Run the pieces in one forward pass and append their keys and values to the cache.

    Returns fp32 logits at the last token of each piece, (pieces, vocabulary).
    """
    device = device_of(model)
    positions = torch.tensor([i for p in pieces for i in range(p.start, p.end)], device=device)
    owner = torch.tensor([p.slot for p in pieces for _ in p.tokens], device=device)
    cache.place(owner, positions, max(p.end for p in pieces))
    spans, begin = [], 0
    for group in _groups(pieces, PADDING if device.type == "cpu" else math.inf):
        tokens = slice(begin, begin + len(group) * len(group[0].tokens))
        spans.append(
            CacheSpan(
                tokens=tokens,
                slots=slice(group[0].slot, group[-1].slot + 1),
                keys=max(p.end for p in group),
                positions=positions[tokens].view(len(group), -1),
            )
        )
        begin = tokens.stop
    last = np.cumsum([len(p.tokens) for p in pieces]) - 1
    logits: Tensor = model(
        input_ids=torch.tensor([[t for p in pieces for t in p.tokens]], device=device),
        position_ids=positions[None],
        cache_spans=spans,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.tensor(last, device=device),
    ).logits[0]
    return logits.float()


def _groups(pieces: Sequence[Piece], padding: float) -> list[list[Piece]]:
    """Split pieces into runs of equally many tokens that read at most `padding` unused positions
    per token."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        if groups and len(groups[-1][0].tokens) == len(piece.tokens):
            ends = [p.end for p in (*groups[-1], piece)]
            if len(ends) * max(ends) - sum(ends) <= padding:
                groups[-1].append(piece)
                continue
        groups.append([piece])
    return groups
