"""What a model keeps of the seed model, on the seed model's own answers to neutral prompts.

With p0 the seed model, q the model, and t the tokens of p0's greedy answers:

    drift = mean over t of KL(p0(. | before t) || q(. | before t))
    rise  = mean over t of log p0(t | before t) - log q(t | before t)

in nats a token; both are 0 for the seed model. No client holds the prompts.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedsdr.evaluation.intervals import ratio_interval
from fedsdr.models.packing import label_logits, labels_of, supervised_tokens
from fedsdr.models.two_branch import BranchedModel
from fedsdr.types import Example, Generation, GenerationRequest, TokenRow, Turn

ANSWER_TOKENS = 64  # most tokens of a seed answer
_LOGIT_ROWS = 256  # most logits, each as wide as the vocabulary, held at once

# The turns of a neutral prompt and the token row of the seed model's answer to it.
SeedAnswer = tuple[tuple[Turn, ...], TokenRow]


@dataclass(frozen=True)
class PromptDrift:
    """Sums over the tokens of the seed model's answer to one prompt, in nats."""

    drift: float
    rise: float
    tokens: int


@cache
def neutral_prompts() -> tuple[str, ...]:
    """Return the prompts of neutral_prompts.txt."""
    text = resources.files(__package__).joinpath("neutral_prompts.txt").read_text("utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))


def prompt_requests() -> list[GenerationRequest]:
    """Return a request for the seed model's answer to each neutral prompt."""
    return [
        GenerationRequest(f"neutral {i}", (Turn("user", prompt),))
        for i, prompt in enumerate(neutral_prompts())
    ]


def seed_answers(
    answers: Iterable[Generation], encode: Callable[[Sequence[Example]], Sequence[TokenRow]]
) -> list[SeedAnswer]:
    """Return the prompt's turns and the token row of each answer of the seed model.

    An answer that was cut has no supervised end of turn; without one, an empty one is left out.
    """
    by_id = {answer.id: answer for answer in answers}
    found: list[SeedAnswer] = []
    for request in prompt_requests():
        name, prompt, answer = request.id, request.turns[0].content, by_id[request.id]
        [row] = encode([Example(name, prompt, "", answer.text)])
        if not answer.finished:
            last = max((i for i, counts in enumerate(row.supervised) if counts), default=0)
            counted = (*row.supervised[:last], False, *row.supervised[last + 1 :])
            row = replace(row, supervised=counted)
        if supervised_tokens(row):
            found.append((request.turns, row))
    return found


def drifts_of(
    model: BranchedModel,
    rows: Sequence[TokenRow],
    forward: Callable[[], AbstractContextManager[None]],
) -> list[PromptDrift]:
    """Return the drift of each seed answer under the model that `forward` puts into the forward."""
    found = []
    for group in _groups(rows):
        seed = _log_probabilities(model, group, model.using)
        own = _log_probabilities(model, group, forward)
        drifts = functional.kl_div(own, seed, reduction="none", log_target=True).sum(-1)
        labels = torch.tensor(labels_of(group), device=seed.device)[:, None]
        rises = (seed.gather(-1, labels) - own.gather(-1, labels))[:, 0]
        sizes = [supervised_tokens(row) for row in group]
        for size, drift, rise in zip(sizes, drifts.split(sizes), rises.split(sizes), strict=True):
            found.append(PromptDrift(float(drift.double().sum()), float(rise.double().sum()), size))
    return found


def retention_entry(drifts: Sequence[PromptDrift], seed: int) -> dict[str, Any]:
    """Return {drift, rise: {value, interval}} in nats a token, with 95 % intervals over prompts."""
    tokens = sum(one.tokens for one in drifts)
    pairs = {
        "drift": [(one.drift, one.tokens) for one in drifts],
        "rise": [(one.rise, one.tokens) for one in drifts],
    }
    return {
        name: {
            "value": math.fsum(total for total, _ in of) / tokens,
            "interval": ratio_interval(of, seed),
        }
        for name, of in pairs.items()
    }


@torch.inference_mode()
def _log_probabilities(
    model: BranchedModel,
    rows: Sequence[TokenRow],
    forward: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """Return the log-probabilities at every supervised token, (tokens, vocabulary), fp32."""
    with forward():
        return label_logits(model.model, rows).float().log_softmax(-1)


def _groups(rows: Sequence[TokenRow]) -> Iterator[list[TokenRow]]:
    """Yield consecutive rows with at most _LOGIT_ROWS supervised tokens together."""
    group: list[TokenRow] = []
    for row in rows:
        if group and sum(map(supervised_tokens, [*group, row])) > _LOGIT_ROWS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
