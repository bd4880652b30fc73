"""Generate text with the loaded model and the branches that are currently in its forward.

Rows share one forward pass per token without padding (continuous batching): the common prefix of
all prompts is computed once, and a finished row is replaced by the next prompt. Each row draws
from its own seed, so that its random numbers depend on neither batch size nor order.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsdr.models.forward_plan import plan_of
from fedsdr.models.packing import device_of, row_inputs, shared_prefix
from fedsdr.models.row_cache import Piece, RowCache, forward_pieces
from fedsdr.models.token_sampling import choose_tokens
from fedsdr.models.two_branch import BranchedModel
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest, Turn

CACHES = ("past_key_values", "cache_params", "state")  # names in the models of transformers
OnText = Callable[[str, str], None]  # id of a request, its text so far
PREFILL_TOKENS = 4096  # most prompt tokens in one forward pass, unless a single prompt is longer


@dataclass
class _Row:
    """One answer being generated: its prompt, where its random numbers come from, its tokens."""

    request: GenerationRequest
    prompt: list[int]
    random: np.random.Generator
    branches: BranchedModel | None = None  # of its client; None: those that run
    new: list[int] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """The number of its tokens in the cache: all but the newest."""
        return len(self.prompt) + len(self.new) - 1

    def draw(self) -> float:
        """Return the random number of its next token."""
        return self.random.random()


@dataclass(frozen=True)
class _Ending:
    """When a row ends, its text, and who is shown it after each token."""

    tokenizer: Any
    stop_ids: frozenset[int]
    until: Sequence[str] | None
    on_text: OnText | None = None

    def add(self, row: _Row, token: int) -> None:
        row.new.append(token)
        if self.on_text:
            self.on_text(row.request.id, self.text(row))

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
    branches_of: Mapping[str, BranchedModel] | None = None,
    on_text: OnText | None = None,
) -> Generate:
    """Return a `Generate` over `model`, with the branches in its forward at the time of the call.

    Sampling applies temperature, then top-k, then top-p. Models whose rows cannot share a forward
    pass generate one row at a time. With `until`, a text also ends before the first of these
    strings, and its surrounding white space is kept. `branches_of` gives, by id, the branches of
    requests of several clients. `on_text` is called after each token.
    """
    owner = branches_of or {}
    ending = _Ending(tokenizer, frozenset(stop_token_ids), until, on_text)

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        rows = [
            _Row(r, render(r.turns), np.random.default_rng(r.seed), owner.get(r.id))
            for r in requests
        ]
        plan = plan_of(model)
        long: list[_Row] = []
        short: list[_Row] = []
        for row in rows:
            most = len(row.prompt) + decoding.max_new_tokens
            (long if plan.is_long(most) else short).append(row)
        if plan.generation == "shared_cache":
            yield from map(ending.answer, _batched(model, short, decoding, ending, batch_size))
        else:
            yield from map(ending.answer, _one_by_one(model, short, decoding, ending))
        yield from map(ending.answer, _one_by_one(model, long, decoding, ending, cached=False))

    return generate


@torch.inference_mode()
def _batched(
    model: nn.Module, rows: list[_Row], decoding: Decoding, ending: _Ending, batch_size: int
) -> Iterator[_Row]:
    """Yield rows as they finish; up to `batch_size` share each forward pass."""
    # Longest prompts first, so that rows which run together have caches of similar length. Rows of
    # a client stay together, so that they share a matmul with its branches.
    clients = list(dict.fromkeys(row.branches for row in rows))
    waiting = deque(
        sorted(rows, key=lambda r: (clients.index(r.branches), -len(r.prompt), r.request.id))
    )
    if not waiting:
        return
    slots = min(batch_size, len(rows))
    longest = max(len(row.prompt) for row in rows)
    cache = RowCache(slots + 1, longest + decoding.max_new_tokens)
    prefix = shared_prefix([row.prompt for row in rows]) if len(clients) == 1 else 0
    if prefix:  # kept in the extra slot
        piece = Piece(slots, 0, rows[0].prompt[:prefix])
        with _running([rows[0]], [piece]):
            forward_pieces(model, cache, [piece])
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
        with _running(running[first:], pieces):
            logits = forward_pieces(model, cache, pieces)
        chosen = choose_tokens(logits, [row.draw() for row in running[first:]], decoding)
        for row, token in zip(running[first:], chosen, strict=True):
            ending.add(row, token)
        for slot in reversed(range(len(running))):
            row = running[slot]
            if ending.ended(row) or len(row.new) == decoding.max_new_tokens:
                last = running.pop()  # moves into the free slot
                if slot < len(running):
                    cache.copy(len(running), slot, last.cached)
                    running[slot] = last
                yield row


def _running(rows: Sequence[_Row], pieces: Sequence[Piece]) -> AbstractContextManager[None]:
    """Return the context in which each row's piece runs through the branches of its client."""
    segments: list[tuple[BranchedModel, int]] = []
    for row, piece in zip(rows, pieces, strict=True):
        if row.branches is None:
            return nullcontext()
        before = segments.pop()[1] if segments and segments[-1][0] is row.branches else 0
        segments.append((row.branches, before + len(piece.tokens)))
    return segments[0][0].running(*segments)


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
def _one_by_one(
    model: nn.Module, rows: list[_Row], decoding: Decoding, ending: _Ending, cached: bool = True
) -> Iterator[_Row]:
    """Yield rows, each generated alone, `cached` if the model's plan says so."""
    for row in rows:
        cache = None
        with row.branches.running() if row.branches else nullcontext():
            while not row.new or not (ending.ended(row) or len(row.new) == decoding.max_new_tokens):
                logits, cache = next_logits(model, row.prompt + row.new, cache, cached)
                ending.add(row, *choose_tokens(logits, [row.draw()], decoding))
        yield row


def next_logits(
    model: nn.Module, tokens: list[int], cache: Any, cached: bool = True
) -> tuple[Tensor, Any]:
    """Return fp32 logits (1, vocabulary) after the tokens of one row, and the model's own cache.

    `cache` is that of all tokens but the last, or None at the start. Without a cache, the whole
    row is computed. ValueError if the model returns none.
    """
    if not cached or plan_of(model).generation == "no_cache":
        return model(**row_inputs(model, tokens)).logits[:, -1].float(), None
    ids = torch.tensor([tokens if cache is None else tokens[-1:]], device=device_of(model))
    out = model(input_ids=ids, use_cache=True, **(cache or {}))
    for name in CACHES:
        if getattr(out, name, None) is not None:
            return out.logits[:, -1].float(), {name: out[name]}
    raise ValueError("the model returns no cache")
