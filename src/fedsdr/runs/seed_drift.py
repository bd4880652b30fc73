"""Retention of the models of a run: how far they are from the seed model on neutral prompts."""

from collections.abc import Sequence
from dataclasses import asdict, astuple
from functools import partial
from statistics import fmean
from typing import Any

from fedsdr.evaluation.held_out import greedy
from fedsdr.evaluation.retention import (
    ANSWER_TOKENS,
    PromptDrift,
    SeedAnswer,
    drifts_of,
    neutral_prompts,
    prompt_requests,
    retention_entry,
    seed_answers,
)
from fedsdr.progress import Progress
from fedsdr.runs.base_cache import kept_of_base
from fedsdr.runs.client_runtime import ClientRuntime, mixed_model
from fedsdr.runs.served_models import Serving, serving_of
from fedsdr.seeds import seed_for
from fedsdr.types import ClientData, Generation, ServerState


def retention_of(
    runtime: ClientRuntime,
    clients: Sequence[ClientData],
    state: ServerState,
    progress: Progress,
    until: str = "left",
) -> dict[str, Any]:
    """Return how far the global model and each client's own are from the seed model.

    `models` has drift and rise of the global model and the mean over the clients' own, with 95 %
    intervals over prompts; `clients` those of each client; `rows`, for each model, the sums (drift,
    rise, tokens) of each prompt.
    """
    seed, own = seed_for(runtime.config.seed, "retention"), {}
    with progress.bar("measuring retention, models", 1 + len(clients), 0.0, until) as advance:
        answers = _seed_answers(runtime)
        shared = _drifts(runtime, serving_of(runtime, state, "global"), answers, None)
        advance(1)
        for client in clients:
            serving = serving_of(runtime, state, "client", client.client_id)
            same = serving.values is state.shared
            own[client.client_id] = shared if same else _drifts(runtime, serving, answers, client)
            advance(1)
    entries = {name: retention_entry(drifts, seed) for name, drifts in own.items()}
    return {
        "prompts": len(answers),
        "tokens": sum(one.tokens for one in shared),
        "models": {
            "global": retention_entry(shared, seed),
            # A mean over clients for each prompt: all clients answer for the same prompts.
            "client": retention_entry(_mean_by_prompt(list(own.values())), seed),
        },
        "clients": entries,
        "rows": {
            "global": [list(astuple(one)) for one in shared],
            "clients": {
                name: [list(astuple(one)) for one in drifts] for name, drifts in own.items()
            },
        },
    }


def _seed_answers(runtime: ClientRuntime) -> list[SeedAnswer]:
    """Return the base model's answers to the neutral prompts, from the cache if it has them."""
    config = runtime.config
    most = min(ANSWER_TOKENS, config.evaluation.max_new_tokens)

    def generate() -> list[dict[str, Any]]:
        with runtime.model.using():
            answer = runtime.generate(config.evaluation.batch_size)
            return [asdict(made) for made in answer(prompt_requests(), greedy(most))]

    about = most, config.evaluation.batch_size, neutral_prompts()
    answers = kept_of_base(runtime, "seed_answers", about, generate)
    return seed_answers((Generation(**made) for made in answers), runtime.encode)


def _drifts(
    runtime: ClientRuntime,
    serving: Serving,
    answers: Sequence[SeedAnswer],
    client: ClientData | None,
) -> list[PromptDrift]:
    model = runtime.model
    model.set(serving.values)
    if serving.mixed and client:
        mixed = mixed_model(runtime, client)
        return [
            drift
            for turns, row in answers
            for drift in drifts_of(model, [row], partial(mixed.using, turns))
        ]
    rows = [row for _, row in answers]
    return drifts_of(model, rows, partial(model.using, *serving.branches))


def _mean_by_prompt(drifts: Sequence[Sequence[PromptDrift]]) -> list[PromptDrift]:
    return [
        PromptDrift(fmean(one.drift for one in of), fmean(one.rise for one in of), of[0].tokens)
        for of in zip(*drifts, strict=True)
    ]
