"""Evaluate one model on the clients' test rows: reference loss and score."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedsdr.data.chat_templates import prompt_of
from fedsdr.data.tool_messages import in_form_of
from fedsdr.evaluation.answer_audit import AnswerAudit, audit_answer
from fedsdr.evaluation.metrics import Metric
from fedsdr.seeds import seed_for
from fedsdr.types import Decoding, Example, Generate, Generation, GenerationRequest

Infer = Callable[[Sequence[tuple[str, str]]], Sequence[str]]  # as in models/nli.py
# Per example: the summed loss of its assistant turns in nats, and their supervised tokens.
Losses = Callable[[Sequence[Example]], Sequence[tuple[float, int]]]


@dataclass(frozen=True)
class ExampleScore:
    """Measurements of one test row, without the answer's text, which is as private as the row."""

    id: str
    loss_sum: float  # nats, over all assistant turns
    tokens: int  # supervised tokens that loss_sum is over
    score: float  # of the last turn, in [0, 1]
    new_tokens: int
    finished: bool  # the answer ended before max_new_tokens
    audit: AnswerAudit


@dataclass(frozen=True)
class ClientScores:
    """Measurements of one model on the test rows of one client."""

    metric: str
    rows: tuple[ExampleScore, ...]

    @property
    def tokens(self) -> int:
        """Supervised tokens of all rows."""
        return sum(row.tokens for row in self.rows)

    @property
    def loss(self) -> float:
        """Mean nats per supervised token of all rows; NaN without tokens."""
        total = math.fsum(row.loss_sum for row in self.rows)
        return total / self.tokens if self.tokens else math.nan

    @property
    def score(self) -> float:
        """Mean score of the rows."""
        return math.fsum(row.score for row in self.rows) / len(self.rows)

    @property
    def finished(self) -> float:
        """Fraction of answers that ended before max_new_tokens."""
        return sum(row.finished for row in self.rows) / len(self.rows)


def scores_of(found: Mapping[str, Any]) -> ClientScores:
    """Return the scores that `asdict` made a mapping of."""
    rows = (ExampleScore(**{**row, "audit": AnswerAudit(**row["audit"])}) for row in found["rows"])
    return ClientScores(found["metric"], tuple(rows))


@dataclass(frozen=True)
class HeldOut:
    """The test rows of one client and the metric of their answers."""

    rows: tuple[Example, ...]
    metric: Metric


def requests_for(rows: Iterable[tuple[str, Example]], seed: int) -> list[GenerationRequest]:
    """Return a request for the last answer of each row, with the given name as its id."""
    return [
        GenerationRequest(name, prompt_of(row), seed_for(seed, "evaluate", row.id))
        for name, row in rows
    ]


def greedy(max_new_tokens: int) -> Decoding:
    """Return the greedy decoding that all scored answers use."""
    return Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=max_new_tokens)


def evaluate_on(
    tests: Mapping[str, HeldOut],
    *,
    losses: Losses,
    generate: Generate,
    max_new_tokens: int,
    seed: int,
    infer: Infer | None = None,
) -> dict[str, ClientScores]:
    """Evaluate a model, given by its `losses` and `generate`, on the test rows of each client.

    All clients' rows share the batches. Decoding is greedy. In a conversation only the last answer
    is generated, after the reference answers of the earlier turns. `infer` tells the relation of a
    gold answer to the model's. ValueError if a client has no rows, or if a row does not get exactly
    one loss and one answer.
    """
    rows = [(f"{client}/{row.id}", row) for client, test in tests.items() for row in test.rows]
    if not all(test.rows for test in tests.values()):
        raise ValueError("no test rows to evaluate on")
    generations = list(generate(requests_for(rows, seed), greedy(max_new_tokens)))
    answers = {generation.id: generation for generation in generations}
    counts = {len(generations), len(answers), len(rows)}
    if len(counts) > 1 or answers.keys() != {name for name, _ in rows}:
        raise ValueError(
            f"{len(generations)} answers do not match the ids of {len(rows)} test rows"
        )
    for name, row in rows:
        text = in_form_of(row.tool_messages[1], answers[name].text)
        answers[name] = replace(answers[name], text=text)
    measured = dict(zip(dict(rows), losses([row for _, row in rows]), strict=True))
    relations: dict[str, str] = {}
    if infer:
        pairs = [(row.response, answers[name].text) for name, row in rows]
        relations = dict(zip(dict(rows), infer(pairs), strict=True))
    scores = {}
    for client, test in tests.items():
        scored = []
        for row in test.rows:
            name = f"{client}/{row.id}"
            (loss_sum, tokens), made = measured[name], answers[name]
            scored.append(
                ExampleScore(
                    id=row.id,
                    loss_sum=loss_sum,
                    tokens=tokens,
                    score=test.metric.score(row.response, made.text),
                    new_tokens=made.new_tokens,
                    finished=made.finished,
                    audit=_audit(row, made, test.metric.name, relations.get(name)),
                )
            )
        scores[client] = ClientScores(test.metric.name, tuple(scored))
    return scores


def _audit(row: Example, made: Generation, metric: str, relation: str | None) -> AnswerAudit:
    prompt = "\n".join(turn.content for turn in prompt_of(row))
    return replace(audit_answer(prompt, row.response, made.text, metric), relation=relation)
