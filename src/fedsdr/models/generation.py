"""Generate text with the loaded model and whatever branches are in its forward.

Prompts enter without padding, what all of them begin with is computed once, the cache is written
in place and never copied, and a finished row leaves at once and makes room for the next prompt.
Each row draws from its own seed, so neither batch size nor order changes which random numbers it
sees.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsdr.models.packing import device_of
from fedsdr.models.row_attention import Span, uses_rows
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest, Turn

PREFILL_TOKENS = 4096  # of prompts that enter in one forward pass, unless one alone is longer
# Rows that share a product read the cache up to the longest of them. Where that would be more
# positions than this for nothing, a product of its own costs less. (A GPU rather reads.)
PADDING = 512


@dataclass
class _Row:
    """One answer in the making: its prompt, its random numbers, its new tokens."""

    request: GenerationRequest
    prompt: list[int]
    uniforms: np.ndarray
    new: list[int] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """How many of its tokens the cache has: all but the last new one."""
        return len(self.prompt) + len(self.new) - 1


Ended = Callable[[_Row], bool]  # whether a row ended by itself


@dataclass(frozen=True)
class _Piece:
    """New tokens of the row in `slot`, the first of which stands at `start`."""

    slot: int
    start: int
    tokens: Sequence[int]

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class RowCache:
    """Keys and values of `slots` rows, each layer (slots, heads, capacity, size).

    Has the two methods that Hugging Face layers call. `place` says first where new tokens go.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.owner = self.position = torch.empty(0, dtype=torch.long)

    def place(self, owner: Tensor, position: Tensor) -> None:
        """Let the next tokens stand at these positions of these slots, (tokens,) both."""
        self.owner, self.position = owner, position

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.position.max())

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values, (1, heads, tokens, size); return all that the layer has."""
        if layer_idx not in self.layers:
            shape = (self.slots, key.shape[1], self.capacity)
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
        for kept in (tensor for pair in self.layers.values() for tensor in pair):
            kept[target, :, :length] = kept[source, :, :length]


def transformers_generate(
    model: nn.Module,
    tokenizer: Any,
    render: Callable[[Sequence[Turn]], list[int]],
    stop_token_ids: Sequence[int],
    batch_size: int = 32,
    until: Sequence[str] | None = None,
) -> Generate:
    """Return a `Generate` that uses `model` as it stands when it is called.

    Sampling order: temperature, then top-k, then top-p. Models that cannot share a forward
    between rows go through transformers' own `generate`, one row at a time. With `until`, the text
    also ends before the first of these strings, and no white space is taken from its ends.
    """
    stops = frozenset(stop_token_ids)

    def text_of(row: _Row) -> str:
        kept = row.new[:-1] if row.new[-1] in stops else row.new
        # Some tokenizers drop a space before the first token that they decode, which would be one
        # of an indentation: what is not stripped is decoded behind the end of its prompt.
        before = [] if until is None else list(row.prompt[-8:])
        whole, head = (
            str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (before + kept, before)
        )
        return whole[len(head) :]

    def ended(row: _Row) -> bool:
        return row.new[-1] in stops or (
            bool(until) and any(stop in text_of(row) for stop in until or ())
        )

    def answer(row: _Row) -> Generation:
        text = text_of(row)
        if until is None:
            text = text.strip()
        else:
            text = text[: min((text.find(stop) for stop in until if stop in text), default=None)]
        return Generation(row.request.id, text, ended(row), len(row.prompt), len(row.new))

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        rows = [
            _Row(r, render(r.turns), np.random.default_rng(r.seed).random(decoding.max_new_tokens))
            for r in requests
        ]
        steps = _in_one_cache if uses_rows(model) else _one_by_one
        for row in steps(model, rows, decoding, ended, batch_size):
            yield answer(row)

    return generate


@torch.inference_mode()
def _in_one_cache(
    model: nn.Module, rows: list[_Row], decoding: Decoding, ended: Ended, batch_size: int
) -> Iterator[_Row]:
    # Longest prompts first: rows that share a step then have caches of like length, in order.
    waiting = deque(sorted(rows, key=lambda r: (-len(r.prompt), r.request.id)))
    if not waiting:
        return
    slots = min(batch_size, len(rows))
    cache = RowCache(slots + 1, len(waiting[0].prompt) + decoding.max_new_tokens)
    shared = _common_start([r.prompt[:-1] for r in rows]) if len(rows) > 1 else []
    if shared:  # the slot behind the rows keeps it
        _forward(model, cache, [_Piece(slots, 0, shared)])
    running: list[_Row] = []
    while waiting or running:
        # A pass over prompts costs a whole forward, so slots are filled a few at a time.
        first = 0
        if waiting and (not running or slots - len(running) >= max(1, slots // 4)):
            first = len(running)
            room = PREFILL_TOKENS
            while waiting and len(running) < slots:
                room -= len(waiting[0].prompt) - len(shared)
                if room < 0 and len(running) > first:
                    break
                if shared:
                    cache.copy(slots, len(running), len(shared))
                running.append(waiting.popleft())
            pieces = [
                _Piece(slot, len(shared), row.prompt[len(shared) :])
                for slot, row in enumerate(running[first:], first)
            ]
        else:
            pieces = [_Piece(slot, row.cached, row.new[-1:]) for slot, row in enumerate(running)]
        logits = _forward(model, cache, pieces)
        uniforms = [float(row.uniforms[len(row.new)]) for row in running[first:]]
        for row, token in zip(
            running[first:], choose_tokens(logits, uniforms, decoding), strict=True
        ):
            row.new.append(token)
        for slot in reversed(range(len(running))):
            row = running[slot]
            if ended(row) or len(row.new) == decoding.max_new_tokens:
                last = running.pop()  # takes the place of the row that leaves
                if slot < len(running):
                    cache.copy(len(running), slot, last.cached)
                    running[slot] = last
                yield row


def _common_start(prompts: Sequence[list[int]]) -> list[int]:
    """Return the longest list that all prompts begin with."""
    first, last = min(prompts), max(prompts)  # in sorted order these two differ first
    length = 0
    while length < len(first) and first[length] == last[length]:
        length += 1
    return first[:length]


def _forward(model: nn.Module, cache: RowCache, pieces: Sequence[_Piece]) -> Tensor:
    """Run the pieces through the model; fp32 logits after the last token of each, (pieces, vocab).

    Their keys and values go into the cache.
    """
    device = device_of(model)
    positions = torch.tensor([i for p in pieces for i in range(p.start, p.end)], device=device)
    owner = torch.tensor([p.slot for p in pieces for _ in p.tokens], device=device)
    cache.place(owner, positions)
    spans, begin = [], 0
    for group in _groups(pieces, PADDING if device.type == "cpu" else math.inf):
        tokens = slice(begin, begin + len(group) * len(group[0].tokens))
        spans.append(
            Span(
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
        spans=spans,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.tensor(last, device=device),
    ).logits[0]
    return logits.float()


def _groups(pieces: Sequence[_Piece], padding: float) -> list[list[_Piece]]:
    """Cut pieces into runs of equally many tokens each that read at most `padding` cache positions
    a token for nothing."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        if groups and len(groups[-1][0].tokens) == len(piece.tokens):
            ends = [p.end for p in (*groups[-1], piece)]
            if len(ends) * max(ends) - sum(ends) <= padding:
                groups[-1].append(piece)
                continue
        groups.append([piece])
    return groups


@torch.inference_mode()
def _one_by_one(
    model: nn.Module, rows: list[_Row], decoding: Decoding, ended: Ended, batch_size: int
) -> Iterator[_Row]:
    """For models whose layers keep a state of their own kind: their cache, one row at a time."""
    device = device_of(model)
    for row in rows:
        ids = torch.tensor([row.prompt], device=device)
        cache = None
        while not row.new or not (ended(row) or len(row.new) == decoding.max_new_tokens):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            uniform = float(row.uniforms[len(row.new)])
            row.new += choose_tokens(out.logits[:, -1].float(), [uniform], decoding)
            ids = torch.tensor([[row.new[-1]]], device=device)
        yield row


def choose_tokens(
    logits: Tensor, uniforms: Sequence[float], decoding: Decoding, wide: int = 256
) -> list[int]:
    """Return one token a row of `logits` (rows, vocabulary), by inverse CDF of `uniforms`.

    Temperature 0 takes the most likely one. Otherwise softmax(logits / temperature) is cut to
    the `top_k` most likely tokens and to the smallest set whose mass reaches `top_p`, and the
    first token whose cumulative share exceeds the row's uniform number is taken. Without `top_k`
    only the `wide` most likely tokens are sorted, and all of them in a row where that falls short.
    """
    if decoding.temperature == 0:
        return [int(t) for t in logits.argmax(-1)]
    scaled = logits / decoding.temperature
    wide = min(logits.shape[-1], decoding.top_k or wide)
    top, order = scaled.topk(wide, dim=-1)
    shares = (top - (top if decoding.top_k else scaled).logsumexp(-1, keepdim=True)).exp()
    before = shares.cumsum(-1) - shares
    kept = shares.masked_fill(before >= decoding.top_p, 0.0)
    cumulative = kept.double().cumsum(-1)
    target = torch.tensor(uniforms, device=logits.device).double()[:, None] * cumulative[:, -1:]
    picks = (cumulative <= target).sum(-1, keepdim=True).clamp(max=wide - 1)
    tokens = [int(t) for t in order.gather(-1, picks)[:, 0]]
    if not decoding.top_k and wide < logits.shape[-1]:
        short = (shares.sum(-1) < decoding.top_p).nonzero()[:, 0].tolist()
        if short:  # these alone: what another row needs must not change how a row is rounded
            chosen = [uniforms[i] for i in short]
            again = choose_tokens(logits[short], chosen, decoding, logits.shape[-1])
            for i, token in zip(short, again, strict=True):
                tokens[i] = token
    return tokens
