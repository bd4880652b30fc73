"""Curves of gain against what a model lost, and differences between variants at equal gain.

The gain of a model is the fall of its mean loss from that of the base. A variant that drifts less
may only have learned less; at equal gain the two are told apart.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from fedsdr.evaluation.results import Table
from fedsdr.research.compare.differences import Group, Groups, Sample
from fedsdr.research.compare.draws import more_draws, paired_interval
from fedsdr.research.compare.model_values import Results

# What is lost: measure -> its name in tables.
LOST = {
    "drift": "drift, KL from the base ↓",
    "unsupported": "answers with a number or name from nowhere ↓",
    "wrong": "wrong final number, label or call ↓",
}


@dataclass(frozen=True)
class Point:
    """A model after a round: its gain in nats per token, and the measures of `LOST` that it has.

    `round` is "served" for the best round where that is kept: it differs between runs.
    """

    round: int | str
    gain: float
    lost: Mapping[str, float]


def curve_of(results: Results, records: Iterable[Mapping[str, Any]], model: str) -> list[Point]:
    """Return the points of the `model` ("global", "client") of a run, from the base on.

    `records` are the lines of rounds.jsonl; rounds that were not measured in full on the test rows
    have no point. The last point is that of results.json, of the model that is served.
    """
    last = {
        "mean": results["mean"],
        "retention": (results.get("retention") or {}).get("models"),
    }
    by_round = {
        record["round"]: record["evaluation"]
        for record in records
        if (found := record.get("evaluation")) and found["of"] == "test" and "mean" in found
        if "base" in found["mean"] and record["round"] < results["rounds"]
    }
    end = "served" if "served_round" in results else results["rounds"]
    base = last["mean"]["base"]
    points = [Point(0, 0.0, _lost(base, {"drift": {"value": 0.0}} if last["retention"] else {}))]
    for number, found in [*sorted(by_round.items()), (end, last)]:
        own, kept = found["mean"][model], (found.get("retention") or {}).get(model) or {}
        points.append(Point(number, base["loss"] - own["loss"], _lost(own, kept)))
    return points


def lost_at(curve: Sequence[Point], gain: float, measure: str) -> float | None:
    """Return a measure where the curve first reaches `gain`, by linear interpolation.

    None where it never does, or where a point on either side lacks the measure.
    """
    for before, after in pairwise(curve):
        if before.gain <= gain <= after.gain:
            if not (measure in before.lost and measure in after.lost):
                return None
            rise = after.gain - before.gain
            share = (gain - before.gain) / rise if rise else 0.0
            return before.lost[measure] + share * (after.lost[measure] - before.lost[measure])
    return None


def front_of(
    groups: Groups,
    records: Mapping[Group, Mapping[Sample, Sequence[Mapping[str, Any]]]],
    baseline: str,
) -> dict[str, list[dict[str, Any]]]:
    """Return the curves (means over draws and seeds) and the differences at equal gain.

    The equal gain of a pair of runs is the lower of their highest gains. A difference is that to
    the `baseline` with the same algorithm, sweep point, draw and seed; its interval is over draws.
    "left_out" counts the pairs in which a run never gains or lacks the measure. The others are then
    chosen by their outcome, so the difference has no interval.
    """
    curves = {
        (group, model): {s: curve_of(run, records[group][s], model) for s, run in runs.items()}
        for group, runs in groups.items()
        for model in ("global", "client")
        if runs
    }
    rows = [row for place, of in curves.items() for row in _curve_rows(*place, of)]
    equal = []
    for (group, model), of in curves.items():
        against = curves.get((replace(group, variant=baseline), model), {})
        if group.variant != baseline and against:
            equal += [
                group.place | {"model": model, "measure": measure} | found
                for measure in LOST
                if (found := _at_equal_gain(of, against, measure))
            ]
    return {"curves": rows, "equal_gain": equal}


def front_tables(front: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Table]:
    """Return the tables of the curves and of the differences at equal gain, if there are any."""
    tables: list[Table] = []
    if front["curves"]:
        places = list(dict.fromkeys(key for row in front["curves"] for key in row))[: -len(LOST)]
        shown = [name for name in LOST if any(row[name] is not None for row in front["curves"])]
        head = [*(f"{key} ↑" if key == "gain" else key for key in places)]
        body = [
            [*(_text(row[key]) for key in places), *(_text(row[name]) for name in shown)]
            for row in front["curves"]
        ]
        title = "Gain (fall of the loss, nats per token) and what it cost, by round"
        tables.append((title, [[*head, *(LOST[name] for name in shown)], *body]))
    if front["equal_gain"]:
        keys = [key for key in front["equal_gain"][0] if key not in ("low", "high", "more_draws")]
        body = []
        for row in front["equal_gain"]:
            cells = [LOST[row[k]] if k == "measure" else _text(row[k]) for k in keys]
            cells[-1] = f"{row['difference']:+.3f}"
            if row["low"] is not None:
                cells[-1] += f" [{row['low']:+.3f}, {row['high']:+.3f}]"
            if row["more_draws"]:
                cells[-1] += f", {row['more_draws']} more"
            body.append(cells)
        title = "At equal gain: difference to the baseline [95 % interval over draws]"
        tables.append((title, [[key.replace("_", " ") for key in keys], *body]))
    return tables


def _lost(model: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, float]:
    found = {**model.get("audit", {}), **kept}
    return {name: found[name]["value"] for name in LOST if name in found}


def _curve_rows(
    group: Group, model: str, curves: Mapping[Sample, Sequence[Point]]
) -> list[dict[str, Any]]:
    """Return one row per round that every run measured: means over draws and seeds."""
    points = [{point.round: point for point in curve} for curve in curves.values()]
    rows = []
    for number in (n for n in points[0] if all(n in of for of in points)):
        of_round = [of[number] for of in points]
        row: dict[str, Any] = {"round": number, "gain": statistics.fmean(p.gain for p in of_round)}
        for name in LOST:
            values = [p.lost[name] for p in of_round if name in p.lost]
            row[name] = statistics.fmean(values) if len(values) == len(of_round) else None
        rows.append(group.place | {"model": model} | row)
    return rows


def _at_equal_gain(
    own: Mapping[Sample, Sequence[Point]], theirs: Mapping[Sample, Sequence[Point]], measure: str
) -> dict[str, Any] | None:
    """Return the mean difference of a measure at equal gain; None if no draw has one."""
    gains: list[float] = []
    by_draw: dict[int, list[float]] = {}
    samples = sorted(own.keys() & theirs.keys())
    for sample in samples:
        gain = min(max(point.gain for point in of[sample]) for of in (own, theirs))
        mine, other = (lost_at(of[sample], gain, measure) for of in (own, theirs))
        if gain > 0 and mine is not None and other is not None:
            gains.append(gain)
            by_draw.setdefault(sample[0], []).append(mine - other)
    if not gains:
        return None
    differences = [statistics.fmean(of) for of in by_draw.values()]
    left_out = len(samples) - len(gains)
    low, high = (None if left_out else paired_interval(differences)) or (None, None)
    return {
        "draws": len(differences),
        "left_out": left_out,
        "gain": statistics.fmean(gains),
        "difference": statistics.fmean(differences),
        "low": low,
        "high": high,
        "more_draws": None if left_out else more_draws(differences),
    }


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
