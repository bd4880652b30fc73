"""Generate text with the loaded model and the branches that are currently in its forward.

Rows share one forward pass per token without padding (continuous batching): the common prefix of
all prompts is computed once, and a finished row is replaced by the next prompt. Each row draws
from its own seed, so that its random numbers depend on neither batch size nor order.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsdr.models.packing import device_of, shared_prefix
from fedsdr.models.row_attention import uses_rows
from fedsdr.models.row_cache import Piece, RowCache, forward_pieces
from fedsdr.models.token_sampling import choose_tokens
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest, Turn

PREFILL_TOKENS = 4096  # most prompt tokens in one forward pass, unless a single prompt is longer


@dataclass
class _Row:
    """One answer being generated: its prompt, its random numbers and its new tokens."""

    request: GenerationRequest
    prompt: list[int]
    uniforms: np.ndarray
    new: list[int] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """The number of its tokens in the cache: all but the newest."""
        return len(self.prompt) + len(self.new) - 1

    @property
    def uniform(self) -> float:
        """The random number of its next token."""
        return float(self.uniforms[len(self.new)])


@dataclass(frozen=True)
class _Ending:
    """When a row ends, and its text."""

    tokenizer: Any
    stop_ids: frozenset[int]
    until: Sequence[str] | None

    def text(self, row: _Row) -> str:
        new = row.new[:-1] if row.new[-1] in self.stop_ids else row.new
        # Some tokenizers drop a leading space, which with `until` may be indentation: decode the
        # new tokens after the last ones of the prompt, and cut those off.
        before = [] if self.until is None else list(row.prompt[-8:])
        whole, head = (
            str(self.tokenizer.decode(ids, skip_special_tokens=True))
            for ids in (before + new, before)
        )
        return whole[len(head) :]

    def ended(self, row: _Row) -> bool:
        """Return whether the row ended by itself, not at `max_new_tokens`."""
        return row.new[-1] in self.stop_ids or (
            bool(self.until) and any(stop in self.text(row) for stop in self.until or ())
        )

    def answer(self, row: _Row) -> Generation:
        text = self.text(row)
        if self.until is None:
            text = text.strip()
        else:
            text = text[: min((text.find(s) for s in self.until if s in text), default=None)]
        return Generation(row.request.id, text, self.ended(row), len(row.prompt), len(row.new))


def transformers_generate(
    model: nn.Module,
    tokenizer: Any,
    render: Callable[[Sequence[Turn]], list[int]],
    stop_token_ids: Sequence[int],
    batch_size: int = 32,
    until: Sequence[str] | None = None,
) -> Generate:
    """Return a `Generate` over `model`, with the branches in its forward at the time of the call.

    Sampling applies temperature, then top-k, then top-p. Models whose rows cannot share a forward
    pass generate one row at a time. With `until`, a text also ends before the first of these
    strings, and its surrounding white space is kept.
    """
    ending = _Ending(tokenizer, frozenset(stop_token_ids), until)

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        rows = [
            _Row(r, render(r.turns), np.random.default_rng(r.seed).random(decoding.max_new_tokens))
            for r in requests
        ]
        if uses_rows(model):
            finished = _generate_batched(model, rows, decoding, ending, batch_size)
        else:
            finished = _generate_one_by_one(model, rows, decoding, ending)
        for row in finished:
            yield ending.answer(row)

    return generate


@torch.inference_mode()
def _generate_batched(
    model: nn.Module, rows: list[_Row], decoding: Decoding, ending: _Ending, batch_size: int
) -> Iterator[_Row]:
    """Yield rows as they finish; up to `batch_size` share each forward pass."""
    # Longest prompts first, so that rows which run together have caches of similar length.
    waiting = deque(sorted(rows, key=lambda r: (-len(r.prompt), r.request.id)))
    if not waiting:
        return
    slots = min(batch_size, len(rows))
    cache = RowCache(slots + 1, len(waiting[0].prompt) + decoding.max_new_tokens)
    prefix = shared_prefix([row.prompt for row in rows])
    if prefix:  # kept in the extra slot
        forward_pieces(model, cache, [Piece(slots, 0, rows[0].prompt[:prefix])])
    running: list[_Row] = []
    while waiting or running:
        first = 0
        # Prefill costs a whole forward pass, so free slots are filled several at a time.
        if waiting and (not running or slots - len(running) >= max(1, slots // 4)):
            first = len(running)
            running += _next_prompts(waiting, slots - len(running), prefix)
            for slot in range(first, len(running) if prefix else first):
                cache.copy(slots, slot, prefix)
            pieces = [
                Piece(slot, prefix, row.prompt[prefix:])
                for slot, row in enumerate(running[first:], first)
            ]
        else:
            pieces = [Piece(slot, row.cached, row.new[-1:]) for slot, row in enumerate(running)]
        logits = forward_pieces(model, cache, pieces)
        chosen = choose_tokens(logits, [row.uniform for row in running[first:]], decoding)
        for row, token in zip(running[first:], chosen, strict=True):
            row.new.append(token)
        for slot in reversed(range(len(running))):
            row = running[slot]
            if ending.ended(row) or len(row.new) == decoding.max_new_tokens:
                last = running.pop()  # moves into the free slot
                if slot < len(running):
                    cache.copy(len(running), slot, last.cached)
                    running[slot] = last
                yield row


def _next_prompts(waiting: deque[_Row], free_slots: int, prefix: int) -> list[_Row]:
    """Remove and return the rows of the next prefill: at least one, at most PREFILL_TOKENS."""
    chosen: list[_Row] = []
    room = PREFILL_TOKENS
    while waiting and len(chosen) < free_slots:
        room -= len(waiting[0].prompt) - prefix
        if room < 0 and chosen:
            break
        chosen.append(waiting.popleft())
    return chosen


@torch.inference_mode()
def _generate_one_by_one(
    model: nn.Module, rows: list[_Row], decoding: Decoding, ending: _Ending
) -> Iterator[_Row]:
    """Yield rows, each generated alone with the model's own kind of cache."""
    device = device_of(model)
    for row in rows:
        ids = torch.tensor([row.prompt], device=device)
        cache = None
        while not row.new or not (ending.ended(row) or len(row.new) == decoding.max_new_tokens):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            row.new += choose_tokens(out.logits[:, -1].float(), [row.uniform], decoding)
            ids = torch.tensor([[row.new[-1]]], device=device)
        yield row
