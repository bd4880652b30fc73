"""How likely given continuations are: one forward for all that share a context, prefixes once."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from fedsdr.models.rows import label_logits, shared_prefix
from fedsdr.types import TokenRow

Pair = tuple[tuple[int, ...], tuple[int, ...]]  # context and continuation, neither empty

PACK_TOKENS = 4096  # computed in one forward: what its rows all begin with counts once
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
    """Cut the rows, sorted so that what begins alike stands together, into packs of at most
    PACK_TOKENS; a row that alone is longer has a pack of its own."""
    pack: list[Pair] = []
    for key in sorted(rows, key=lambda key: rows[key].tokens):
        grown = [rows[k] for k in (*pack, key)]
        prefix = shared_prefix(grown)
        tokens = prefix + sum(len(row.tokens) - prefix for row in grown)
        kept = sum(sum(row.supervised) for row in grown)
        if pack and (tokens > PACK_TOKENS or kept > KEPT_TOKENS):
            yield pack
            pack = []
        pack.append(key)
    if pack:
        yield pack
