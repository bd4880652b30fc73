"""The measures of a run as values of its test rows, which a comparison can pair."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fedsdr.evaluation.answer_audit import SIGNS, sign_pair
from fedsdr.evaluation.intervals import Pair
from fedsdr.evaluation.model_tables import RETENTION

Results = Mapping[str, Any]  # results.json; "suites" has the run's suites.json
# client -> test row id -> (numerator, denominator); a client's value is the ratio of the sums
Values = dict[str, dict[str, Pair]]
MEASURES = ("loss", "score")

# Measure -> its name in tables, with an arrow to what is better.
MODEL_MEASURES = {name: f"{sign.title} {sign.better}" for name, sign in SIGNS.items()}
MODEL_MEASURES |= {name: f"{title} ↓" for name, title in RETENTION.items()}


def measured_in(results: Results) -> list[str]:
    """Return the measures of MODEL_MEASURES that a run has; none in results of older versions."""
    audit = results.get("mean", {}).get("base", {}).get("audit", {})
    kept = RETENTION if results.get("retention") else {}
    return [name for name in MODEL_MEASURES if name in audit or name in kept]


def measures_of(runs: Sequence[Results]) -> list[str]:
    """Return the measures that any of the runs has: loss, score, MODEL_MEASURES, suites."""
    found = {measure for run in runs for measure in measured_in(run)}
    suites = {suite: None for run in runs for suite in run.get("suites", {})}
    return [*MEASURES, *(measure for measure in MODEL_MEASURES if measure in found), *suites]


def asked_alike(runs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """Return how each suite was asked that all runs were asked alike; the names of the others."""
    alike, unlike = {}, []
    for name in sorted({name for suites in runs for name in suites}):
        asked = [suites.get(name, {}) for suites in runs]
        if len({repr([s.get(key) for key in ("ids", "shots", "how")]) for s in asked}) == 1:
            alike[name] = f"{asked[0]['shots']}-shot, {asked[0]['num_questions']} questions"
        else:
            unlike.append(name)
    return alike, unlike


def values_of(results: Results, model: str, measure: str) -> Values:
    """Return the values of one model's test rows: losses over supervised tokens, scores over 1.

    Those of the audit and of retention: see `model_values`. Those of a suite are its first metric's
    by question, in one stratum, for clients their mean. {} where they were not measured.
    """

    def pair(row: Mapping[str, Any]) -> tuple[float, float]:
        return (row["loss_sum"], row["tokens"]) if measure == "loss" else (row["score"], 1)

    if measure in MODEL_MEASURES:
        return model_values(results, model, measure) if measure in measured_in(results) else {}
    if measure in MEASURES:
        return {
            client: {row["id"]: pair(row[model]) for row in rows}
            for client, rows in results["examples"].items()
        }
    suite = results["suites"][measure]
    models = {kind: [entry] for kind, entry in suite["models"].items()}
    own = list(suite["clients"].values()) or models.get("global", [])  # no private branch: global
    if not (entries := {**models, "client": own}.get(model)):
        return {}
    metric = next(iter(entries[0]["scores"]))
    scores = zip(*(entry["scores"][metric] for entry in entries), strict=True)
    questions = enumerate(zip(suite["ids"], scores, strict=True))
    return {measure: {f"{i} {name}": (statistics.fmean(of), 1) for i, (name, of) in questions}}


def model_values(results: Results, model: str, measure: str) -> Values:
    """Return client -> row -> (value, 1) of a measure, whose mean over rows is the client's value.

    A client's value is a ratio of sums, sum(n) / sum(d), whose denominators differ between models.
    A row counts with the linear part of what it does to the ratio (the delta method),
    r + (n - r d) / mean(d), so that rows of two models can be paired. Retention has one stratum,
    the neutral prompts; that of the own models is the mean over clients.
    """
    if measure in RETENTION:
        return {"neutral prompts": _linear(_retention_pairs(results, model, measure))}
    found = {}
    for client, rows in results["examples"].items():
        pairs = {row["id"]: sign_pair(measure, row[model]) for row in rows}
        if applies := {row: pair for row, pair in pairs.items() if pair[1]}:
            found[client] = _linear(applies)
    return found


def _linear(pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    ratio = math.fsum(n for n, _ in pairs.values()) / math.fsum(d for _, d in pairs.values())
    mean = math.fsum(d for _, d in pairs.values()) / len(pairs)
    return {row: (ratio + (n - ratio * d) / mean, 1.0) for row, (n, d) in pairs.items()}


def _retention_pairs(results: Results, model: str, measure: str) -> dict[str, Pair]:
    rows, at = results["retention"]["rows"], list(RETENTION).index(measure)
    models: Sequence[Sequence[Sequence[float]]]
    models = [rows["global"]] if model != "client" else list(rows["clients"].values())
    share = 0.0 if model == "base" else 1 / len(models)  # the base has no drift
    return {
        f"prompt {i}": (share * math.fsum(one[at] for one in prompts), prompts[0][2])
        for i, prompts in enumerate(zip(*models, strict=True))
    }
