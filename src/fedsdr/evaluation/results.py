"""results.json: base, global and client model on each client's test rows, and their means."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedsdr.evaluation.bootstrap import Means, percentile_interval, resampled_means
from fedsdr.evaluation.held_out import ClientScores
from fedsdr.seeds import seed_for

MODELS = ("base", "global", "client")
HEADER = [
    "client",
    "test rows",
    "metric",
    *(f"{m} {what}" for what in ("score", "loss") for m in MODELS),
]

Intervals = Mapping[str, list[float]]  # model -> the interval of its mean score


@dataclass(frozen=True)
class ClientResult:
    """What was measured on one client. Methods with one branch give the scores of the global model
    as the client's too."""

    num_train: int
    models: Mapping[str, ClientScores]  # one for each of MODELS, over the same rows


def build_results(
    *,
    method: str,
    algorithm: str,
    seed: int,
    rounds: int,
    clients: Mapping[str, ClientResult],
    cost: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of results.json.

    loss: nats a supervised token. score: by each client's own metric. score_ci: the 95 % bootstrap
    interval of the score over test rows; of a mean, over the test rows of each client, the clients
    being given. finished: the share of answers that ended by themselves. mean: every client counts
    once. weighted_mean: scores by test rows, losses by supervised tokens.

    Where clients have different metrics, the mean scores mix them: compare them between models on
    the same clients, and read nothing else into them.

    ValueError names the client whose models were not measured on the same rows, or the place of a
    number that is not finite, which JSON cannot hold.
    """
    if not clients:
        raise ValueError("results of no clients are not defined")
    for name, client in clients.items():
        _check_same_rows(name, client)
    own, mean, weighted = _intervals(clients, seed)
    results = {
        "method": method,
        "algorithm": algorithm,
        "seed": seed,
        "rounds": rounds,
        "clients": {name: _client_entry(c, own[name]) for name, c in clients.items()},
        "mean": {model: _mean(model, clients, mean[model]) for model in MODELS},
        "weighted_mean": {
            model: _weighted_mean(model, clients, weighted[model]) for model in MODELS
        },
        "cost": dict(cost),
        "examples": {name: _example_entries(client) for name, client in clients.items()},
    }
    _check_finite(results, "results")
    return results


def rows_of(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of results.json as text: a header, a row a client, and the two means.

    After a score stands half the width of its interval.
    """
    lines = [
        (name, client["num_test"], client["metric"], client["models"])
        for name, client in results["clients"].items()
    ]
    total = sum(rows for _, rows, _, _ in lines)
    metrics = {metric for _, _, metric, _ in lines}
    shared = metrics.pop() if len(metrics) == 1 else "mixed"
    lines.append(("mean", total, shared, results["mean"]))
    lines.append(("weighted mean", total, shared, results["weighted_mean"]))
    return [HEADER] + [
        [name, str(rows), metric]
        + [_score_text(models[model]) for model in MODELS]
        + [f"{models[model]['loss']:.3f}" for model in MODELS]
        for name, rows, metric, models in lines
    ]


def to_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its header, numbers are on the right."""
    header, *body = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    rule = [":--", *("--:" for _ in header[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, rule, *body])


def _intervals(
    clients: Mapping[str, ClientResult], seed: int
) -> tuple[dict[str, Intervals], Intervals, Intervals]:
    """Return the intervals of each client, of the mean and of the weighted mean over clients.

    The draws of one client at a time are in memory: 2,000 numbers a model.
    """
    own: dict[str, Intervals] = {}
    sums: dict[str, Means] = dict.fromkeys(MODELS, np.zeros(()))
    weighted: dict[str, Means] = dict.fromkeys(MODELS, np.zeros(()))
    total = 0
    for name, client in clients.items():
        count = len(client.models["base"].rows)
        resampled = _resampled(client, seed_for(seed, "score_ci", name))
        own[name] = {model: percentile_interval(means) for model, means in resampled.items()}
        sums = {model: sums[model] + resampled[model] for model in MODELS}
        weighted = {model: weighted[model] + count * resampled[model] for model in MODELS}
        total += count
    return (
        own,
        {model: percentile_interval(x / len(clients)) for model, x in sums.items()},
        {model: percentile_interval(x / total) for model, x in weighted.items()},
    )


def _resampled(client: ClientResult, seed: int) -> dict[str, Means]:
    """For each model, its mean score over the same draws of test rows."""
    return {
        model: resampled_means([row.score for row in scores.rows], seed)
        for model, scores in client.models.items()
    }


def _client_entry(client: ClientResult, intervals: Intervals) -> dict[str, Any]:
    base = client.models["base"]
    return {
        "num_train": client.num_train,
        "num_test": len(base.rows),
        "metric": base.metric,
        "models": {
            model: {
                "loss": scores.loss,
                "score": scores.score,
                "score_ci": intervals[model],
                "tokens": scores.tokens,
                "finished": scores.finished,
            }
            for model, scores in client.models.items()
        },
    }


def _mean(model: str, clients: Mapping[str, ClientResult], interval: list[float]) -> dict[str, Any]:
    scores = [client.models[model] for client in clients.values()]
    return {
        "loss": math.fsum(s.loss for s in scores) / len(scores),
        "score": math.fsum(s.score for s in scores) / len(scores),
        "score_ci": interval,
    }


def _weighted_mean(
    model: str, clients: Mapping[str, ClientResult], interval: list[float]
) -> dict[str, Any]:
    rows = [client.models[model].rows for client in clients.values()]
    pooled = ClientScores("", tuple(row for of_client in rows for row in of_client))
    return {
        "loss": pooled.loss,
        "score": pooled.score,
        "score_ci": interval,
    }


def _example_entries(client: ClientResult) -> list[dict[str, Any]]:
    entries = []
    for rows in zip(*(client.models[model].rows for model in MODELS), strict=True):
        measured = [asdict(row) for row in rows]
        ids = {row.pop("id") for row in measured}
        entries.append({"id": ids.pop(), **dict(zip(MODELS, measured, strict=True))})
    return entries


def _check_same_rows(name: str, client: ClientResult) -> None:
    """Scores of other rows, or by another metric, must never stand side by side."""
    if set(client.models) != set(MODELS):
        raise ValueError(f"client '{name}': scores of {list(client.models)}, not of {list(MODELS)}")
    measured = {
        (scores.metric, tuple((row.id, row.tokens) for row in scores.rows))
        for scores in client.models.values()
    }
    if len(measured) > 1 or not client.models["base"].rows:
        raise ValueError(
            f"client '{name}': its models were not measured by one metric on the same test rows"
        )


def _check_finite(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, not a finite number")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_finite(item, f"{where}[{index}]")


def _score_text(entry: Mapping[str, Any]) -> str:
    low, high = entry["score_ci"]
    # Rows that all score the same say nothing of the spread: an interval of 0 would mislead.
    return f"{entry['score']:.3f}" + (f" ± {(high - low) / 2:.3f}" if high > low else "")
