"""results.json: the base, global and own model of each client on its test rows, and their means."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedsdr.evaluation.answer_audit import SIGNS, measured_signs
from fedsdr.evaluation.held_out import ClientScores
from fedsdr.evaluation.intervals import score_interval, weighted_mean
from fedsdr.seeds import seed_for

MODELS = ("base", "global", "client")
Table = tuple[str, Sequence[Sequence[str]]]  # title, rows; the first row is the header


@dataclass(frozen=True)
class ClientResult:
    """The scores of one client's models, over the same test rows.

    Methods without a private branch give the scores of the global model as the client's too.
    """

    num_train: int
    models: Mapping[str, ClientScores]  # one for each of MODELS
    # Its own model on the rows of every client, its own included; empty if not measured.
    elsewhere: Mapping[str, ClientScores] = field(default_factory=dict)


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

    loss: nats per supervised token. score: by the client's own metric. score_ci: 95 % interval of
    the score over test rows; Wilson's where all scores of a client are 0 or 1, else bootstrap. That
    of a mean combines the clients' intervals, since the clients are given, not sampled. finished:
    share of answers that ended before the token limit. mean: every client counts once.
    weighted_mean: scores weighted by test rows, losses by supervised tokens. audit: the signs of
    `answer_audit.SIGNS`, each over the answers, and in the means the clients, to which it applies.

    Means over clients with different metrics are only comparable between models.

    ValueError names the client whose models were not measured on the same rows, or the place of a
    number that is not finite, which JSON cannot hold.
    """
    if not clients:
        raise ValueError("results of no clients are not defined")
    for name, client in clients.items():
        _check_same_rows(name, client)
    entries = {
        name: _client_entry(c, seed_for(seed, "score_ci", name)) for name, c in clients.items()
    }
    _check_finite({"clients": entries, "cost": cost}, "results")
    return {
        "method": method,
        "algorithm": algorithm,
        "seed": seed,
        "rounds": rounds,
        "clients": entries,
        "mean": {model: _mean(entries.values(), model, weighted=False) for model in MODELS},
        "weighted_mean": {model: _mean(entries.values(), model, weighted=True) for model in MODELS},
        "cost": dict(cost),
        "examples": {name: _example_entries(client) for name, client in clients.items()},
    }


def table_of(results: Mapping[str, Any]) -> list[list[str]]:
    """Return results.json as rows of text: a header, a row per client, the two means, and a row for
    each client that took no part."""
    lines = [
        (name, client["num_test"], client["metric"], client["models"])
        for name, client in results["clients"].items()
    ]
    total = sum(rows for _, rows, _, _ in lines)
    metrics = {metric for _, _, metric, _ in lines}
    shared = metrics.pop() if len(metrics) == 1 else "mixed"
    lines.append(("mean", total, shared, results["mean"]))
    lines.append(("weighted mean", total, shared, results["weighted_mean"]))
    lines += [
        (f"{name} (took no part)", client["num_test"], client["metric"], client["models"])
        for name, client in (results.get("took_no_part") or {"clients": {}})["clients"].items()
    ]
    header = ["client", "test rows", "metric"]
    header += [f"{model} {what}" for what in ("score ↑", "loss ↓") for model in MODELS]
    return [header] + [
        [name, str(rows), metric]
        + [_score_text(models[model]) for model in MODELS]
        + [f"{models[model]['loss']:.3f}" for model in MODELS]
        for name, rows, metric, models in lines
    ]


def to_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its header, numbers are right-aligned."""
    header, *body = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    rule = [":--", *("--:" for _ in header[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, rule, *body])


def _client_entry(client: ClientResult, seed: int) -> dict[str, Any]:
    base = client.models["base"]
    # Graded scores that happen to be 0 and 1 alone count as such: no others have a larger variance.
    binary = all(row.score in (0, 1) for of in client.models.values() for row in of.rows)
    return {
        "num_train": client.num_train,
        "num_test": len(base.rows),
        "metric": base.metric,
        "models": {
            model: model_entry(of, seed, binary=binary) for model, of in client.models.items()
        },
    }


def model_entry(of: ClientScores, seed: int, *, binary: bool) -> dict[str, Any]:
    """Return what results.json has of one model on one client's rows.

    `binary`: the scores of the client's models are 0 or 1.
    """
    return {
        "loss": of.loss,
        "score": of.score,
        "score_ci": score_interval([row.score for row in of.rows], seed, binary=binary),
        "tokens": of.tokens,
        "finished": of.finished,
        "audit": measured_signs([asdict(row) for row in of.rows], seed),
    }


def _mean(clients: Iterable[Mapping[str, Any]], model: str, *, weighted: bool) -> dict[str, Any]:
    rows = [client["num_test"] if weighted else 1 for client in clients]
    of = [client["models"][model] for client in clients]
    score, interval = weighted_mean(rows, [m["score"] for m in of], [m["score_ci"] for m in of])
    tokens = [m["tokens"] if weighted else 1 for m in of]
    loss = math.fsum(t * m["loss"] for t, m in zip(tokens, of, strict=True)) / sum(tokens)
    audits = [m["audit"] for m in of]
    audit = {
        sign: _mean_sign(audits, sign, weighted) for sign in SIGNS if any(sign in a for a in audits)
    }
    return {"loss": loss, "score": score, "score_ci": interval, "audit": audit}


def _mean_sign(audits: Sequence[Mapping[str, Any]], sign: str, weighted: bool) -> dict[str, Any]:
    """Return the mean of one sign over the clients to which it applies."""
    found = [audit[sign] for audit in audits if sign in audit]
    weights = [entry["weight"] if weighted else 1 for entry in found]
    value, interval = weighted_mean(
        weights, *([e[k] for e in found] for k in ("value", "interval"))
    )
    return {"value": value, "interval": interval, "rows": sum(entry["rows"] for entry in found)}


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
    return f"{entry['score']:.3f}{interval_text(entry['score_ci'])}"


def interval_text(interval: Sequence[float]) -> str:
    low, high = interval
    # Equal graded scores say nothing about the spread: an interval of width 0 would mislead.
    return f" [{low:.3f}, {high:.3f}]" if high > low else ""
