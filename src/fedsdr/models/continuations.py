"""How likely given continuations are: one forward for all that share a context, prefixes once."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import nn

from fedsdr.models.packing import label_logits, shared_prefix
from fedsdr.types import TokenRow

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # context and continuation, neither empty

PACK_TOKENS = 4096  # computed in one forward: what its rows all begin with counts once
NEW_SUBJECT = 64  # tokens less in common with a pack, which then ends
KEPT_TOKENS = 512  # whose logits, each as wide as the vocabulary, are held at once


@torch.inference_mode()
def score_continuations(model: nn.Module, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    """Return of each pair (log p(continuation | context) in nats, it is what greedy would say).

    Pairs that are equal but for the last token of the continuation (the letters of a multiple
    choice) are read from the logits of one row.
    """
    sharing: dict[Pair, list[int]] = {}
    for i, (context, continuation) in enumerate(pairs):
        sharing.setdefault((context, continuation[:-1]), []).append(i)
    rows = {}
    for key, members in sharing.items():
        context, continuation = pairs[members[0]]
        supervised = (False,) * len(context) + (True,) * len(continuation)
        rows[key] = TokenRow("", (*context, *continuation), supervised)
    scores = [(0.0, False)] * len(pairs)
    for keys in _packs(rows):
        logits = label_logits(model, [rows[key] for key in keys]).float()
        normaliser, best, at = logits.logsumexp(-1), logits.argmax(-1), 0
        for key in keys:
            end = at + len(key[1]) + 1
            for i in sharing[key]:
                wanted = torch.tensor(pairs[i][1], device=logits.device)
                said = logits[at:end].gather(-1, wanted[:, None])[:, 0]
                scores[i] = (
                    float((said - normaliser[at:end]).sum()),
                    bool((best[at:end] == wanted).all()),
                )
            at = end
    return scores


def _packs(rows: dict[Pair, TokenRow]) -> Iterator[list[Pair]]:
    """Cut the rows, sorted so that what begins alike stands together, into packs.

    A pack has at most PACK_TOKENS and KEPT_TOKENS, unless one row alone has more, and ends where
    the next row has much less in common with it than its own rows, or that row and the one after,
    have with each other: there the next subject begins.
    """
    keys = sorted(rows, key=lambda key: rows[key].tokens)
    common = [shared_prefix([rows[a], rows[b]]) for a, b in pairwise(keys)]
    pack: list[Pair] = []
    prefix = tokens = kept = 0
    for i, key in enumerate(keys):
        size, labels = len(rows[key].tokens), sum(rows[key].supervised)
        if pack:
            with_it = min(prefix, common[i - 1])
            otherwise = max(prefix if len(pack) > 1 else 0, *common[i : i + 1], 0)
            full = tokens + size - len(pack) * with_it > PACK_TOKENS or kept + labels > KEPT_TOKENS
            if full or common[i - 1] + NEW_SUBJECT < otherwise:
                yield pack
                pack = []
        prefix = min(prefix, common[i - 1]) if pack else size
        tokens, kept = (tokens + size, kept + labels) if pack else (size, labels)
        pack.append(key)
    if pack:
        yield pack
