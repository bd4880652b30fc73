"""Log-likelihoods of given continuations; a shared context is computed once."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import nn

from fedsdr.models.packing import label_logits, shared_prefix
from fedsdr.types import TokenRow

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # context and continuation, neither empty

PACK_TOKENS = 4096  # most tokens per forward pass; a shared prefix counts once
# A pack ends before a row that would shorten its shared prefix by more than this many tokens.
PREFIX_LOSS = 64
LOGIT_ROWS = 512  # most label logits, each as wide as the vocabulary, held at once


@torch.inference_mode()
def score_continuations(model: nn.Module, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    """Return (log p(continuation | context) in nats, is it the greedy continuation) for each pair.

    Pairs that differ only in the last token of the continuation (the letters of a multiple-choice
    question) share one row.
    """
    groups: dict[Pair, list[int]] = {}
    for i, (context, continuation) in enumerate(pairs):
        groups.setdefault((context, continuation[:-1]), []).append(i)
    rows = {}
    for key, members in groups.items():
        context, continuation = pairs[members[0]]
        supervised = (False,) * len(context) + (True,) * len(continuation)
        rows[key] = TokenRow("", (*context, *continuation), supervised)
    scores = [(0.0, False)] * len(pairs)
    for keys in _packs(rows):
        logits = label_logits(model, [rows[key] for key in keys]).float()
        normaliser, best, at = logits.logsumexp(-1), logits.argmax(-1), 0
        for key in keys:
            end = at + len(key[1]) + 1
            for i in groups[key]:
                wanted = torch.tensor(pairs[i][1], device=logits.device)
                chosen = logits[at:end].gather(-1, wanted[:, None])[:, 0]
                scores[i] = (
                    float((chosen - normaliser[at:end]).sum()),
                    bool((best[at:end] == wanted).all()),
                )
            at = end
    return scores


def _packs(rows: dict[Pair, TokenRow]) -> Iterator[list[Pair]]:
    """Split the rows into packs of at most PACK_TOKENS tokens and LOGIT_ROWS labels.

    Rows are sorted, so that common prefixes are adjacent. A pack also ends where the next row
    shares over PREFIX_LOSS tokens fewer with it than the pack's rows share with each other, or
    than that row shares with the one after: there the next subject begins.
    """
    keys = sorted(rows, key=lambda key: rows[key].tokens)
    common = [shared_prefix([rows[a].tokens, rows[b].tokens]) for a, b in pairwise(keys)]
    pack: list[Pair] = []
    prefix = tokens = labels = 0
    for i, key in enumerate(keys):
        size, new_labels = len(rows[key].tokens), sum(rows[key].supervised)
        if pack:
            shared = min(prefix, common[i - 1])
            otherwise = max(prefix if len(pack) > 1 else 0, *common[i : i + 1], 0)
            full = tokens + size - len(pack) * shared > PACK_TOKENS
            if full or labels + new_labels > LOGIT_ROWS or common[i - 1] + PREFIX_LOSS < otherwise:
                yield pack
                pack = []
        prefix = min(prefix, common[i - 1]) if pack else size
        tokens, labels = (tokens + size, labels + new_labels) if pack else (size, new_labels)
        pack.append(key)
    if pack:
        yield pack
