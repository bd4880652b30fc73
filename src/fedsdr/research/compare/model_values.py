"""The answer audit and the retention of a run as values of rows, which a comparison can pair."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedsdr.evaluation.answer_audit import SIGNS, sign_pair
from fedsdr.evaluation.intervals import Pair
from fedsdr.evaluation.model_tables import RETENTION

Results = Mapping[str, Any]  # results.json
Values = dict[str, dict[str, Pair]]  # as in differences.py

# Measure -> its name in tables, with an arrow to what is better.
MODEL_MEASURES = {name: f"{sign.title} {sign.better}" for name, sign in SIGNS.items()}
MODEL_MEASURES |= {name: f"{title} ↓" for name, title in RETENTION.items()}


def measured_in(results: Results) -> list[str]:
    """Return the measures of MODEL_MEASURES that a run has; none in results of older versions."""
    audit = results.get("mean", {}).get("base", {}).get("audit", {})
    kept = RETENTION if results.get("retention") else {}
    return [name for name in MODEL_MEASURES if name in audit or name in kept]


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
