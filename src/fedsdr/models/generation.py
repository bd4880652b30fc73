"""Generate text with the loaded model and whatever branches are in its forward.

Prompts enter without padding, the cache is written in place and never copied, and a finished row
leaves at once and makes room for the next prompt. Each row draws from its own seed, so neither
batch size nor order changes which random numbers it sees.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsdr.models.attention import uses_rows
from fedsdr.models.rows import device_of, positions
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest, Turn

PREFILL_TOKENS = 4096  # of prompts that enter in one forward pass, unless one alone is longer


@dataclass
class _Row:
    """One answer in the making: its prompt, its random numbers, its new tokens."""

    request: GenerationRequest
    prompt: list[int]
    uniforms: np.ndarray
    new: list[int] = field(default_factory=list)


class RowCache:
    """Keys and values of up to `slots` rows, each layer (slots, heads, capacity, size).

    Has the two methods that Hugging Face layers call. `filling` names the slots and lengths of
    prompts that lie end to end; None means one new token for each of the first rows.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.lengths: list[int] = []
        self.filling: list[tuple[int, int]] | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.lengths, default=0)

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values; return what the query may look at."""
        if layer_idx not in self.layers:
            shape = (self.slots, key.shape[1], self.capacity)
            self.layers[layer_idx] = (
                key.new_zeros(*shape, key.shape[3]),
                value.new_zeros(*shape, value.shape[3]),
            )
        keys, values = self.layers[layer_idx]
        if self.filling is not None:
            start = 0
            for slot, length in self.filling:
                keys[slot, :, :length] = key[0, :, start : start + length]
                values[slot, :, :length] = value[0, :, start : start + length]
                start += length
            return key, value
        rows = len(self.lengths)
        at = torch.tensor(self.lengths, device=key.device) - 1
        every = torch.arange(rows, device=key.device)
        keys[every, :, at] = key[:, :, 0]
        values[every, :, at] = value[:, :, 0]
        longest = max(self.lengths)
        return keys[:rows, :, :longest], values[:rows, :, :longest]

    def remove(self, slot: int) -> None:
        """Free a slot by moving the last row into it."""
        last = len(self.lengths) - 1
        if slot != last:
            length = self.lengths[last]
            for keys, values in self.layers.values():
                keys[slot, :, :length] = keys[last, :, :length]
                values[slot, :, :length] = values[last, :, :length]
        self.lengths[slot] = self.lengths[last]
        self.lengths.pop()


def transformers_generate(
    model: nn.Module,
    tokenizer: Any,
    render: Callable[[Sequence[Turn]], list[int]],
    stop_token_ids: Sequence[int],
    batch_size: int = 32,
) -> Generate:
    """Return a `Generate` that uses `model` as it stands when it is called.

    Sampling order: temperature, then top-k, then top-p. Models that cannot share a forward
    between rows go through transformers' own `generate`, one row at a time.
    """
    stops = frozenset(stop_token_ids)

    def answer(row: _Row) -> Generation:
        finished = bool(row.new) and row.new[-1] in stops
        kept = row.new[:-1] if finished else row.new
        text = tokenizer.decode(kept, skip_special_tokens=True).strip()
        return Generation(row.request.id, text, finished, len(row.prompt), len(row.new))

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        rows = [
            _Row(r, render(r.turns), np.random.default_rng(r.seed).random(decoding.max_new_tokens))
            for r in requests
        ]
        steps = _in_one_cache if uses_rows(model) else _one_by_one
        for row in steps(model, rows, decoding, stops, batch_size):
            yield answer(row)

    return generate


@torch.inference_mode()
def _in_one_cache(
    model: nn.Module, rows: list[_Row], decoding: Decoding, stops: frozenset[int], batch_size: int
) -> Iterator[_Row]:
    # Longest prompts first: rows that share a step then have caches of like length.
    waiting = deque(sorted(rows, key=lambda r: (-len(r.prompt), r.request.id)))
    if not waiting:
        return
    slots = min(batch_size, len(rows))
    cache = RowCache(slots, len(waiting[0].prompt) + decoding.max_new_tokens)
    device = device_of(model)
    running: list[_Row] = []
    while waiting or running:
        # A pass over prompts costs a whole forward, so slots are filled a few at a time.
        if waiting and (not running or slots - len(running) >= max(1, slots // 4)):
            new = [waiting.popleft()]
            while waiting and len(running) + len(new) < slots:
                if sum(len(r.prompt) for r in (*new, waiting[0])) > PREFILL_TOKENS:
                    break
                new.append(waiting.popleft())
            lengths = tuple(len(r.prompt) for r in new)
            cache.filling = [(len(running) + i, n) for i, n in enumerate(lengths)]
            logits = model(
                input_ids=torch.tensor([[t for r in new for t in r.prompt]], device=device),
                position_ids=positions(lengths, device),
                row_lengths=lengths,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=torch.tensor(np.cumsum(lengths) - 1, device=device),
            ).logits[0]
            cache.filling = None
            cache.lengths += lengths
            first = len(running)
            running += new
        else:
            cache.lengths = [n + 1 for n in cache.lengths]
            kv_lengths = torch.tensor(cache.lengths, device=device)
            logits = model(
                input_ids=torch.tensor([[r.new[-1]] for r in running], device=device),
                position_ids=(kv_lengths - 1)[:, None],
                kv_lengths=kv_lengths,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            first = 0
        tokens = choose_tokens(
            logits.float(), [float(r.uniforms[len(r.new)]) for r in running[first:]], decoding
        )
        for row, token in zip(running[first:], tokens, strict=True):
            row.new.append(token)
        for slot in reversed(range(len(running))):
            row = running[slot]
            if row.new[-1] in stops or len(row.new) == decoding.max_new_tokens:
                cache.remove(slot)
                running[slot] = running[-1]
                running.pop()
                yield row


@torch.inference_mode()
def _one_by_one(
    model: nn.Module, rows: list[_Row], decoding: Decoding, stops: frozenset[int], batch_size: int
) -> Iterator[_Row]:
    """For models whose layers keep a state of their own kind: their cache, one row at a time."""
    device = device_of(model)
    for row in rows:
        ids = torch.tensor([row.prompt], device=device)
        cache = None
        while not row.new or (row.new[-1] not in stops and len(row.new) < decoding.max_new_tokens):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            uniform = float(row.uniforms[len(row.new)])
            row.new += choose_tokens(out.logits[:, -1].float(), [uniform], decoding)
            ids = torch.tensor([[row.new[-1]]], device=device)
        yield row


def choose_tokens(logits: Tensor, uniforms: Sequence[float], decoding: Decoding) -> list[int]:
    """Return one token a row of `logits` (rows, vocabulary), by inverse CDF of `uniforms`.

    Temperature 0 takes the most likely one. Otherwise softmax(logits / temperature) is cut to
    the `top_k` most likely tokens and to the smallest set whose mass reaches `top_p`, and the
    first token whose cumulative share exceeds the row's uniform number is taken.
    """
    if decoding.temperature == 0:
        return [int(t) for t in logits.argmax(-1)]
    scaled = logits / decoding.temperature
    most = logits.shape[-1]
    # A cut keeps few tokens: sort a part of the vocabulary, and all of it only if that falls short.
    wide = min(most, decoding.top_k or 256)
    top, order = scaled.topk(wide, dim=-1)
    shares = (top - (top if decoding.top_k else scaled).logsumexp(-1, keepdim=True)).exp()
    if not decoding.top_k and bool((shares.sum(-1) < decoding.top_p).any()):
        wide = most
        top, order = scaled.topk(wide, dim=-1)
        shares = top.softmax(-1)
    before = shares.cumsum(-1) - shares
    kept = shares.masked_fill(before >= decoding.top_p, 0.0)
    cumulative = kept.double().cumsum(-1)
    target = torch.tensor(uniforms, device=logits.device).double()[:, None] * cumulative[:, -1:]
    picks = (cumulative <= target).sum(-1, keepdim=True).clamp(max=wide - 1)
    return [int(t) for t in order.gather(-1, picks)[:, 0]]
