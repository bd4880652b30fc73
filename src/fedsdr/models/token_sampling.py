"""Choose the next tokens from logits: greedy, temperature, top-k, top-p."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsdr.types import Decoding


def choose_tokens(
    logits: Tensor, uniforms: Sequence[float], decoding: Decoding, candidates: int = 256
) -> list[int]:
    """Return one token per row of `logits` (rows, vocabulary) by inverse transform sampling.

    Temperature 0 is greedy. Otherwise softmax(logits / temperature) is restricted to the `top_k`
    most likely tokens, then to the smallest set whose probability reaches `top_p`; the token is
    the first whose cumulative probability exceeds the row's number in `uniforms`, from [0, 1).
    Without `top_k` only the `candidates` most likely tokens are sorted, and the whole vocabulary
    for rows in which these do not reach `top_p`.
    """
    if decoding.temperature == 0:
        greedy: list[int] = logits.argmax(-1).tolist()
        return greedy
    scaled = logits / decoding.temperature
    candidates = min(logits.shape[-1], decoding.top_k or candidates)
    top, order = scaled.topk(candidates, dim=-1)
    probs = (top - (top if decoding.top_k else scaled).logsumexp(-1, keepdim=True)).exp()
    before = probs.cumsum(-1) - probs
    kept = probs.masked_fill(before >= decoding.top_p, 0.0)
    cumulative = kept.double().cumsum(-1)
    target = torch.tensor(uniforms, device=logits.device).double()[:, None] * cumulative[:, -1:]
    picks = (cumulative <= target).sum(-1, keepdim=True).clamp(max=candidates - 1)
    chosen = order.gather(-1, picks)[:, 0]
    if decoding.top_k or candidates == logits.shape[-1]:
        tokens: list[int] = chosen.tolist()
        return tokens
    # One transfer for the tokens and for whether the candidates were too few.
    short = probs.sum(-1) < decoding.top_p
    tokens, too_few = torch.stack((chosen, short.long())).tolist()
    if any(too_few):
        # These rows alone: the rounding of a row must not depend on the other rows.
        rows = [i for i, few in enumerate(too_few) if few]
        again = choose_tokens(logits[rows], [uniforms[i] for i in rows], decoding, logits.shape[-1])
        for i, token in zip(rows, again, strict=True):
            tokens[i] = token
    return tokens
